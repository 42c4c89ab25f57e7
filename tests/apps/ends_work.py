"""The work of all apps of tests/matrix/test_process_ends.py: spans, recorded in a file after they have ended."""

import os

from opentelemetry import trace
from opentelemetry.trace import Span


def work() -> None:
    """End a span and its parent."""
    tracer = trace.get_tracer("ends")
    with tracer.start_as_current_span("answer") as root:
        with tracer.start_as_current_span("tool") as child:
            pass
        record(child)
    record(root)


# The library ends open spans at a signal only if the application can still end them.
_open_roots: list[Span] = []


def start_open_trace() -> Span:
    """End a span whose parent stays open."""
    tracer = trace.get_tracer("ends")
    root = tracer.start_span("open")
    _open_roots.append(root)
    with trace.use_span(root), tracer.start_as_current_span("tool") as child:
        pass
    record(child)
    return root


def record(span: Span) -> None:
    """Write process, trace, span and whether it is a root, with one call, as several processes write to the file."""
    context = span.get_span_context()
    is_root = getattr(span, "parent", None) is None
    line = f"{os.getpid()} {context.trace_id:032x} {context.span_id:016x} {int(is_root)}\n"
    file = os.open(os.environ["ENDED_SPANS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)
