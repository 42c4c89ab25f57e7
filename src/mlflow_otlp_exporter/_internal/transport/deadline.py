"""One deadline for a whole request, so that a server that drips a handshake, a status line or headers is cut off.

A timeout of `requests` restarts with every byte that arrives, and with every part of a body that is sent over TLS.
Therefore each operation on the socket of a request waits for at most the time that is left.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.poolmanager import pool_classes_by_scheme

# One operation on a TLS socket writes at most one record; `sendall` waits with the whole timeout for each.
_TLS_RECORD_BYTES = 16_384
_current = threading.local()


class Deadline:
    """Limits the request that its thread makes within the `with` block; `at` is a time of `time.monotonic`."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.is_connecting = False  # still true if no connection was established
        self.has_socket = False
        self._outer: Deadline | None = getattr(_current, "deadline", None)  # a signal handler may interrupt a request

    def __enter__(self) -> Deadline:
        _current.deadline = self
        return self

    def __exit__(self, *_: object) -> None:
        _current.deadline = self._outer


def _limit_wait(sock: Any) -> None:
    """Limit the next operation on a socket; raises TimeoutError if no time is left."""
    deadline: Deadline | None = getattr(_current, "deadline", None)
    if deadline is not None:
        deadline.has_socket = True
        if (seconds := deadline.at - time.monotonic()) <= 0:
            raise TimeoutError
        sock.settimeout(seconds)


class _DeadlineReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: Any) -> None:
        self._raw, self._sock = raw, sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _limit_wait(self._sock)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if isinstance(self.fp, io.BufferedReader):  # the sockets of some mocks return another file
            self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock))


class _DeadlineConnection(HTTPConnection):
    response_class = _DeadlineResponse

    def connect(self) -> None:
        deadline = getattr(_current, "deadline", None) or Deadline(0)
        deadline.is_connecting = True
        super().connect()
        deadline.is_connecting = False

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _limit_wait(sock)  # for the TLS handshake, and the first part of a request
        return sock

    def send(self, data: Any) -> None:
        pieces = [data]  # a file or an iterator, in another request of the user's session
        if isinstance(data, bytes):
            pieces = [data[start : start + _TLS_RECORD_BYTES] for start in range(0, len(data), _TLS_RECORD_BYTES)]
        for piece in pieces:
            if self.sock is not None:
                _limit_wait(self.sock)
            super().send(piece)


class _DeadlineTLSConnection(_DeadlineConnection, HTTPSConnection):
    """The same connection over TLS."""


def _pool_class(pool_class: Any, standard: type, limited: type) -> Any:
    class Pool(pool_class):  # type: ignore[misc]
        @property
        def ConnectionCls(self) -> Any:  # noqa: N802 - a class attribute of urllib3
            # Read for each connection, because vcrpy replaces urllib3's class within a `with` block.
            current = pool_class.ConnectionCls
            return limited if current is standard else current

    return Pool


_POOL_CLASSES = {
    "http": _pool_class(urllib3.HTTPConnectionPool, HTTPConnection, _DeadlineConnection),
    "https": _pool_class(urllib3.HTTPSConnectionPool, HTTPSConnection, _DeadlineTLSConnection),
}


def _limit_connections(manager: Any) -> None:
    """Replace the connection classes of a pool manager, unless the user has replaced them already."""
    if getattr(manager, "pool_classes_by_scheme", None) is pool_classes_by_scheme:
        manager.pool_classes_by_scheme = _POOL_CLASSES


class DeadlineAdapter(HTTPAdapter):
    """Adapter whose requests keep a `Deadline`, also through a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _limit_connections(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _limit_connections(manager)
        return manager


def limit_adapters(adapters: Iterable[Any]) -> None:
    """Make the requests of a user's session keep a `Deadline`, if its adapters are standard ones."""
    for adapter in adapters:
        _limit_connections(getattr(adapter, "poolmanager", None))
