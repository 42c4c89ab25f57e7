"""One deadline for a whole request, so that a server that drips a status line or headers is cut off.

A timeout of `requests` restarts with every byte that arrives, and with every part of a body that is sent over TLS.
Therefore a timer shuts down the socket of the request; a thread that waits for the socket wakes with an error then.
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
    """Cuts off the request that its thread makes within the `with` block."""

    def __init__(self, timeout_seconds: float) -> None:
        self.has_cut = False
        self._is_over = False
        self._socket: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(timeout_seconds, self._on_timeout)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        _current.deadline = self
        # No thread can be started while the interpreter exits; the timeouts of `requests` still apply.
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
        """Set the socket of the request."""
        with self._lock:
            self._socket = sock
            if self._is_over:
                self._shut_down_socket()

    def _on_timeout(self) -> None:
        with self._lock:
            self._is_over = True
            if self._socket is not None:
                self._shut_down_socket()

    def _shut_down_socket(self) -> None:
        self.has_cut = True
        with suppress(OSError):  # it is closed already
            if isinstance(self._socket, socket.socket):
                # Not the method of SSLSocket, which removes the encryption while another thread reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            else:
                self._socket.shutdown(socket.SHUT_RDWR)


class _Watched(HTTPConnection):
    """Registers the socket of each request, new or reused, with the deadline of its thread."""

    def connect(self) -> None:
        super().connect()
        self._register_socket()

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        self._register_socket()
        super().putrequest(*args, **kwargs)

    def _register_socket(self) -> None:
        deadline = getattr(_current, "deadline", None)
        if deadline is not None and self.sock is not None:
            deadline.watch(self.sock)


class _WatchedTLS(_Watched, HTTPSConnection):
    """The same connection over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


def _watch(manager: Any) -> None:
    """Replace the connection classes of a pool manager, unless the user has replaced them already."""
    if getattr(manager, "pool_classes_by_scheme", None) is pool_classes_by_scheme:
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class WatchedAdapter(HTTPAdapter):
    """Adapter whose requests keep a `Deadline`, also through a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _watch(manager)
        return manager


def watch_adapters(adapters: Any) -> None:
    """Make the requests of a user's session keep a `Deadline`, if its adapters are standard ones."""
    for adapter in adapters:
        _watch(getattr(adapter, "poolmanager", None))
