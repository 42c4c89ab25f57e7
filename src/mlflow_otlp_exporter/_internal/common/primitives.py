"""Primitives between threads that work under the patching of gevent and eventlet, whenever that is done.

An application may create the exporter first, and patch `threading` later, as `gunicorn -k gevent --preload` does.
Therefore nothing that blocks is created before its first use. As greenlets of one thread are the same owner for an
earlier lock, no code that holds a lock may switch: it starts no thread and sends nothing.
"""

from __future__ import annotations

import threading
from typing import Any


class LazyCondition:
    """Attribute of a class: a `threading.Condition` that each object creates at its first use.

    A forked child removes it from the object's `__dict__`.
    """

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, _: object = None) -> threading.Condition:
        # The object's own attribute takes precedence from then on.
        condition: threading.Condition = instance.__dict__.setdefault(self._name, threading.Condition())
        return condition
