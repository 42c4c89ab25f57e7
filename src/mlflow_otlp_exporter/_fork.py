"""Forked children start afresh: locks of other threads may be held for ever there, and sockets are the parent's."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def after_fork_in_child(renew: Callable[[], None]) -> None:
    """Calls a bound method in every forked child from now on, for as long as its object lives.

    Args:
        renew: A method that replaces locks, threads and sockets and empties queues: what the parent holds, it sends.
    """
    weak = weakref.WeakMethod(renew)

    def call() -> None:
        if alive := weak():
            alive()

    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=call)
