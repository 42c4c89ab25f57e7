"""An application during an outage of its server: `python -m support.outage_app SPANS RATE`; prints costs as JSON."""

import json
import os
import sys
import threading
import time
from array import array
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import configure

TRACE = 10
_WARM_UP = 2000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(spans: str, rate: str) -> None:
    """Make `spans` spans in traces of ten, at most `rate` a second."""
    telemetry = configure(auto_instrument=False, tracer_provider=TracerProvider(shutdown_on_exit=False))
    tracer, pause = telemetry.tracer_provider.get_tracer("outage"), threading.Event()
    # Full size from the start, because the array must not grow during the measurement.
    durations, ends = array("d", bytes(8 * (int(spans) + _WARM_UP))), 0
    before = peak = 0
    begin = time.monotonic()
    for number in range(0, int(spans) + _WARM_UP, TRACE):
        if number == _WARM_UP:
            telemetry.flush(10)
            before = peak = resident_bytes()
            begin, ends = time.monotonic(), 0
        root = tracer.start_span(f"root {number}", attributes={"input.value": f"question {number} " * 10})
        context = trace.set_span_in_context(root)
        for child in range(1, TRACE):
            span = tracer.start_span(f"child {number}.{child}", context, attributes={"output.value": "answer " * 20})
            begin_of_end = time.perf_counter()
            span.end()
            durations[ends] = time.perf_counter() - begin_of_end
            ends += 1
        root.end()
        if number % 1000 == 0:
            peak = max(peak, resident_bytes())
        ahead = (number - _WARM_UP) / float(rate) - (time.monotonic() - begin)
        if number > _WARM_UP and ahead > 0:
            pause.wait(ahead)
    seconds = time.monotonic() - begin
    result = telemetry.shutdown(5)
    sorted_durations = sorted(durations[:ends])
    stats = telemetry.stats()
    measurements = {
        "grown": peak - before,
        "seconds": seconds,
        "median": sorted_durations[ends // 2],
        "p99": sorted_durations[ends * 99 // 100],
        "longest": sorted_durations[-1],
        "dropped": stats.dropped,
        "spooled": stats.spooled,
        "pending": result.pending,
    }
    sys.stdout.write(json.dumps(measurements) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
