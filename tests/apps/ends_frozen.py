"""A handler like those of AWS Lambda: a call per line of the input, and a flush at the end of each call."""

import sys

from ends_work import work

from mlflow_otlp_exporter import configure, flush

configure()
for _line in sys.stdin:
    work()
    assert flush(20)
    print("done", flush=True)
