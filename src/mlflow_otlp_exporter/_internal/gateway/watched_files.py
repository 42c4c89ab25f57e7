"""Files of the gateway that are read again when they change."""

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import logger

_CHECK_SECONDS = 1.0
_SSL_REASONS = {
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in PEM format in it",
}


class WatchedFiles:
    """Calls `load` when one of the files changes; what they contained stays valid until `load` returns.

    Raises ConfigurationError if they are unusable at the start. Later, each breakage and the repair are logged: files
    are often replaced in several steps, which must not lock all clients out.
    """

    def __init__(self, kind: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        self._kind, self._paths, self._load = kind, paths, load
        self._checked_at = time.monotonic()
        self._lock = threading.Lock()
        self._breakage: tuple[Any, str] | None = None
        try:
            self._state = self._read_state()
            load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            message = f"{_path_of(error, paths)} is not usable: {_describe(error)}"
            raise ConfigurationError(message, MessageCode.INVALID_CREDENTIAL) from None

    def _read_state(self) -> list[tuple[int, int, int, int]]:
        # A mounted secret is a symbolic link, which is replaced.
        states = [path.stat() for path in self._paths]
        return [(state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size) for state in states]

    def refresh(self) -> None:
        # One thread at a time: of two readers, the one that ends last may have the older content, with a token that was
        # removed since. Other threads use what is loaded.
        if time.monotonic() - self._checked_at < _CHECK_SECONDS or not self._lock.acquire(blocking=False):
            return
        try:
            self._checked_at = time.monotonic()
            self._reload()
        finally:
            self._lock.release()

    def _reload(self) -> None:
        state = None
        try:
            state = self._read_state()
            if state != self._state:
                self._load()
                self._state = state
            elif self._breakage is None:
                return
        except (OSError, ValueError) as error:
            breakage = state, _describe(error)
            if breakage != self._breakage:
                self._breakage = breakage
                logger.warning(
                    "%s in %s cannot be read: %s. The previous %s stay valid. [%s]",
                    self._kind.capitalize(),
                    _path_of(error, self._paths),
                    breakage[1],
                    self._kind,
                    MessageCode.INVALID_CREDENTIAL,
                )
            return
        self._breakage = None
        message = "%s in %s are read again [%s]"
        logger.info(message, self._kind.capitalize(), self._paths[0], MessageCode.EXPORT_CONFIGURED)


def _path_of(error: Exception, paths: Sequence[Path]) -> str:
    return str(getattr(error, "filename", None) or paths[0])


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return _SSL_REASONS.get(error.reason or "", f"not in PEM format, or damaged ({error.reason or error})")
    return getattr(error, "strerror", None) or str(error)
