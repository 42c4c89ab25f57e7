"""An app at work while its server is away: `python -m support.outage_app SPANS RATE`; prints what it cost, as JSON."""

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


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(spans: str, rate: str) -> None:
    """Makes so many spans, so many a second at most, in traces of ten."""
    telemetry = configure(auto_instrument=False, tracer_provider=TracerProvider(shutdown_on_exit=False))
    tracer, pause = telemetry.tracer_provider.get_tracer("outage"), threading.Event()
    # Of its full size from the start: what is measured with must not grow with what is measured.
    took, ends = array("d", bytes(8 * (int(spans) + _WARM_UP))), 0
    before = peak = 0
    begin = time.monotonic()
    for number in range(0, int(spans) + _WARM_UP, TRACE):
        if number == _WARM_UP:
            telemetry.flush(10)
            before = peak = resident()
            begin, ends = time.monotonic(), 0
        root = tracer.start_span(f"root {number}", attributes={"input.value": f"question {number} " * 10})
        context = trace.set_span_in_context(root)
        for child in range(1, TRACE):
            span = tracer.start_span(f"child {number}.{child}", context, attributes={"output.value": "answer " * 20})
            moment = time.perf_counter()
            span.end()
            took[ends] = time.perf_counter() - moment
            ends += 1
        root.end()
        if number % 1000 == 0:
            peak = max(peak, resident())
        ahead = (number - _WARM_UP) / float(rate) - (time.monotonic() - begin)
        if number > _WARM_UP and ahead > 0:
            pause.wait(ahead)
    seconds = time.monotonic() - begin
    result = telemetry.shutdown(5)
    longest = sorted(took[:ends])
    stats = telemetry.stats()
    found = {
        "grown": peak - before,
        "seconds": seconds,
        "median": longest[ends // 2],
        "p99": longest[ends * 99 // 100],
        "longest": longest[-1],
        "dropped": stats.dropped,
        "spooled": stats.spooled,
        "pending": result.pending,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
