"""Send questions to the Celery worker and wait for its answers."""

import sys

from celery_app import ask

results = [ask.delay(number) for number in range(int(sys.argv[1]))]
assert all("rain" in result.get(timeout=60) for result in results)
