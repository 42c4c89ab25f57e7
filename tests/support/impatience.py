"""Somebody who waits for an exporter all the time, so that no test has to wait as long as it does between attempts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of


@contextmanager
def pressed(exporter: MLflowSpanExporter, every: float = 0.01) -> Iterator[None]:
    """Ends the waits between attempts, however often there is one, as somebody who flushes does.

    Requests keep their time-out: a flush of a moment would cut them off.
    """
    over, pipeline = threading.Event(), pipeline_of(exporter)
    assert pipeline is not None

    def press() -> None:
        while not over.wait(every):
            pipeline.begin_flush(60)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        pipeline.end_flush()
