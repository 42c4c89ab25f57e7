"""A WSGI app that works when it is imported, in the first process or in each worker, and for each request."""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ends_work import start_open_trace, work

from mlflow_otlp_exporter import configure

configure()
work()


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/open":
        start_open_trace()
        threading.Event().wait()
    elif path == "/work":
        work()
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
