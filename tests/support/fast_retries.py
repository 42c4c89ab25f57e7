"""Skip the delays between attempts of an exporter, so that tests need not wait for them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of


@contextmanager
def skip_retry_delays(exporter: MLflowSpanExporter, interval_seconds: float = 0.01) -> Iterator[None]:
    """End the delays between attempts again and again, as a flush does."""
    stop, pipeline = threading.Event(), pipeline_of(exporter)
    assert pipeline is not None

    def wake_repeatedly() -> None:
        while not stop.wait(interval_seconds):
            pipeline.work_queue.wake_all()

    thread = threading.Thread(target=wake_repeatedly)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
