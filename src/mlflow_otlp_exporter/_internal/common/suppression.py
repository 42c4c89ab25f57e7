"""Keeps instrumentations from tracing this library's own HTTP calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context

# The key is a private name, the only one of OpenTelemetry's used here: every span processor of the SDK imports it (1.30
# to 1.45), and without it an instrumented `requests` makes a span of each export, whose export makes a span, for ever.
# Instrumentations also read the plain key, which is all that is left should the private name go.
_KEYS = (
    "suppress_instrumentation",
    getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation"),
)


@contextmanager
def suppressed_instrumentation() -> Iterator[None]:
    """No instrumentation makes spans inside this block, in this thread or task."""
    changed = context.get_current()
    for key in _KEYS:
        changed = context.set_value(key, value=True, context=changed)
    token = context.attach(changed)
    try:
        yield
    finally:
        context.detach(token)
