"""Planted prompts and credentials, and a log handler that finds them.

Every prompt and credential of a test contains the word `planted`; a log with that word has leaked it.
"""

import base64
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

PROMPT = "planted prompt: a question that only the user may read"
SECRET = "planted-secret"

WATCHED = ("mlflow_otlp_exporter", "urllib3", "requests", "opentelemetry")
"""Loggers of code that handles requests or spans; they log everything."""


def _base64_forms(word: bytes) -> Iterator[str]:
    """Iterate over the base64 forms of a word, one for each position in a text."""
    for before in range(3):
        whole = base64.b64encode(b"." * before + word + b"..").decode()
        yield re.escape(whole[-(-before * 8 // 6) : (before + len(word)) * 8 // 6])


# Unchanged, in an address, with a non-ASCII letter, and inside of a Basic authorization.
_MARKER = re.compile("|".join(["pl(?:a|@|%40|ä)nted", *_base64_forms(b"planted")]), re.IGNORECASE)


def has_marker(text: str) -> bool:
    return bool(_MARKER.search(text))


class Watch(logging.Handler):
    """Collects log records with a planted prompt or credential in `leaks`."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Search everything that a handler could write: message, arguments, traceback, extra fields."""
        try:
            parts = [record.getMessage()]
        except Exception:  # logging reports it; the arguments are still checked
            parts = [str(record.msg)]
        parts += [repr(value) for value in record.__dict__.values()]
        if record.exc_info and record.exc_info[1] is not None:
            parts += traceback.format_exception(record.exc_info[1])
        leaked = [part for part in parts if has_marker(part)]
        if leaked:
            self.leaks.append(f"{record.levelname} of {record.name}: {leaked[0]}")


WATCH = Watch()


@contextmanager
def watch_logs() -> Iterator[Watch]:
    """Watch all loggers, with level DEBUG for those of WATCHED."""
    loggers = [logging.getLogger(name) for name in WATCHED]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(WATCH)
    try:
        yield WATCH
    finally:
        logging.getLogger().removeHandler(WATCH)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
