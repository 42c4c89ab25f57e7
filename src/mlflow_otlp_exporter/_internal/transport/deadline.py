"""One deadline for a whole request: whoever drips a status line or headers is cut off when it is over.

A time-out of `requests` begins anew with every byte that comes, and with every piece of a body that goes out over TLS.
So a timer shuts the request's socket down; what waits for it wakes with an error then.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, final

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.poolmanager import pool_classes_by_scheme

_current = threading.local()


@final
class Deadline:
    """Cuts off the request that is made in its block by its thread.

    Args:
        seconds: From now.

    Attributes:
        cut: Whether it has cut the request off.
    """

    def __init__(self, seconds: float) -> None:
        self.cut = False
        self._over = False
        self._socket: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        _current.deadline = self
        # While the interpreter exits no thread can be started: each wait has its own limit all the same.
        with suppress(RuntimeError):
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.deadline = None
        with self._lock:
            self._socket = None
        self._timer.cancel()

    def watch(self, sock: Any) -> None:
        """Takes over the socket that the request goes through."""
        with self._lock:
            self._socket = sock
            if self._over:
                self._shut()

    def _end(self) -> None:
        with self._lock:
            self._over = True
            if self._socket is not None:
                self._shut()

    def _shut(self) -> None:
        self.cut = True
        with suppress(OSError):  # it is closed already
            if isinstance(self._socket, socket.socket):
                # Not TLS's own method, which takes the encryption from under whoever is reading.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            else:
                self._socket.shutdown(socket.SHUT_RDWR)


class _Watched(HTTPConnection):
    """Tells its thread's deadline which socket a request goes through: a new one, or one that is used again."""

    def connect(self) -> None:
        super().connect()
        self._tell()

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        self._tell()
        super().putrequest(*args, **kwargs)

    def _tell(self) -> None:
        deadline = getattr(_current, "deadline", None)
        if deadline is not None and self.sock is not None:
            deadline.watch(self.sock)


class _WatchedTLS(_Watched, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


def _watch(manager: Any) -> None:
    """Makes the connections of a pool manager watched ones, unless somebody has put in others."""
    if getattr(manager, "pool_classes_by_scheme", None) is pool_classes_by_scheme:
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class WatchedAdapter(HTTPAdapter):
    """An adapter whose requests keep a `Deadline`, through a proxy, too."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _watch(manager)
        return manager


def watch_adapters(adapters: Any) -> None:
    """Makes requests of a user's session keep a `Deadline`, where its adapters are ordinary ones.

    Args:
        adapters: The session's.
    """
    for adapter in adapters:
        _watch(getattr(adapter, "poolmanager", None))
