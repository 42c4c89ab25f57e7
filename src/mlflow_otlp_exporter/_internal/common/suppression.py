"""Keeps instrumentations from tracing this library's own HTTP requests, and upstream from logging secrets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context

# The key is a private name, the only one of OpenTelemetry that is used here: every span processor of the SDK imports it
# (1.30 to 1.45), and without it an instrumented `requests` makes a span of each export, whose export makes a span, for
# ever. Instrumentations also read the plain key, which remains if the private name is removed.
_KEYS = ("suppress_instrumentation", getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation"))


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Let no instrumentation make spans inside this block, in this thread or task."""
    suppressing = context.get_current()
    for key in _KEYS:
        suppressing = context.set_value(key, value=True, context=suppressing)
    token = context.attach(suppressing)
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def suppress_header_warnings() -> Iterator[None]:
    """Drop what OpenTelemetry's parser of header variables logs in this thread: it quotes values that it cannot read.

    Upstream's constructor parses the variables of every OTLP endpoint, also those that hold another vendor's key.
    """
    thread_id, logger = threading.get_ident(), logging.getLogger("opentelemetry.util.re")

    def is_other_thread(_: logging.LogRecord) -> bool:
        return threading.get_ident() != thread_id

    logger.addFilter(is_other_thread)
    try:
        yield
    finally:
        logger.removeFilter(is_other_thread)


def hide_logged_queries() -> None:
    """Cut the queries from what urllib3 logs at DEBUG about requests of this library: a key may be in them."""
    logging.getLogger("urllib3.connectionpool").addFilter(_cut_queries)


def _cut_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple) and context.get_value(_KEYS[0]):
        record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
    return True
