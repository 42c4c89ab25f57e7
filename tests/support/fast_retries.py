"""Skip the delays between attempts of an exporter, so that tests need not wait for them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of


@contextmanager
def skip_retry_delays(exporter: MLflowSpanExporter, interval_seconds: float = 0.01) -> Iterator[None]:
    """End the delays between attempts again and again, as a flush does.

    Requests keep their time-out, which a short flush would reduce.
    """
    stop, pipeline = threading.Event(), pipeline_of(exporter)
    assert pipeline is not None

    def flush_repeatedly() -> None:
        while not stop.wait(interval_seconds):
            pipeline.begin_flush(60)

    thread = threading.Thread(target=flush_repeatedly)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pipeline.end_flush()
