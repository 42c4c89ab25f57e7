"""Hooks of forked children: there, locks of other threads may be held for ever, and sockets belong to the parent."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable

_resets: list[weakref.WeakMethod[Callable[[], None]]] = []


def register_fork_reset(reset: Callable[[], None]) -> None:
    """Call a bound method in every forked child, for as long as its object lives.

    The method replaces locks, threads and sockets and empties queues, because the parent sends what it has queued.
    """
    # One callback of the system for all objects: a process may configure often, and callbacks cannot be removed.
    _resets[:] = [reference for reference in _resets if reference() is not None]
    _resets.append(weakref.WeakMethod(reset))


def _reset_all() -> None:
    # A copy: an object may create others during its reset, and these register themselves.
    for reference in _resets.copy():
        reset = reference()
        if reset is not None:
            try:
                reset()
            except Exception:
                # The others must be reset all the same: they would wait for locks that are never released.
                logging.getLogger("mlflow_otlp_exporter").exception("a forked child did not start afresh")


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_all)
