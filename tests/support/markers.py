"""Planted prompts and credentials, and a watch over all logs for them.

Whatever a test gives out as a prompt or as a credential holds the word `planted`; a log that shows it has leaked it.
"""

import base64
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

PROMPT = "planted prompt: what the user asked and nobody else may read"
SECRET = "planted-secret"

WATCHED = ("mlflow_otlp_exporter", "urllib3", "requests", "opentelemetry")
"""Loggers that are turned on in full, as they know requests or spans."""


def _encoded(word: bytes) -> Iterator[str]:
    """What a word is in Base64, wherever in the text it stands: the characters that depend on it alone."""
    for before in range(3):
        whole = base64.b64encode(b"." * before + word + b"..").decode()
        yield re.escape(whole[-(-before * 8 // 6) : (before + len(word)) * 8 // 6])


# As it is, as in an address, with a letter that is not ASCII, and inside a Basic authorization.
_MARKER = re.compile("|".join(["pl(?:a|@|%40|ä)nted", *_encoded(b"planted")]), re.IGNORECASE)


def has_marker(text: str) -> bool:
    """Whether a text shows what was planted."""
    return bool(_MARKER.search(text))


class Watch(logging.Handler):
    """Remembers the records that show what was planted.

    Attributes:
        found: Where each came from, and what it said.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Looks at all that a handler of the app's could write: message, arguments, traceback, extra fields."""
        try:
            parts = [record.getMessage()]
        except Exception:  # logging reports it; the arguments are still checked
            parts = [str(record.msg)]
        parts += [repr(value) for value in record.__dict__.values()]
        if record.exc_info and record.exc_info[1] is not None:
            parts += traceback.format_exception(record.exc_info[1])
        leaked = [part for part in parts if has_marker(part)]
        if leaked:
            self.found.append(f"{record.levelname} of {record.name}: {leaked[0]}")


WATCH = Watch()


@contextmanager
def watch_logs() -> Iterator[Watch]:
    """Watches all loggers, and turns on in full those that know requests or spans."""
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
