"""Forked children start afresh: locks of other threads may be held for ever there, and sockets are the parent's."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable

_renewals: list[weakref.WeakMethod[Callable[[], None]]] = []


def register_fork_reset(renew: Callable[[], None]) -> None:
    """Calls a bound method in every forked child from now on, for as long as its object lives.

    Args:
        renew: A method that replaces locks, threads and sockets and empties queues: what the parent holds, it sends.
    """
    # One callback for all: a process may configure often, and what is registered with the system stays for ever.
    _renewals[:] = [each for each in _renewals if each() is not None]
    _renewals.append(weakref.WeakMethod(renew))


def _renew_all() -> None:
    # A copy: an object that starts afresh may make others, which register themselves meanwhile.
    present = _renewals.copy()
    for each in present:
        renew = each()
        if renew is not None:
            try:
                renew()
            except Exception:
                # One that fails must not keep the others from their fresh start: they would wait for dead locks.
                logging.getLogger("mlflow_otlp_exporter").exception("a forked child did not start afresh")


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_all)
