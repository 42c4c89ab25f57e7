"""Forked children start afresh: locks of other threads may be held for ever there, and sockets are the parent's."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

_renewals: list[weakref.WeakMethod[Callable[[], None]]] = []


def after_fork_in_child(renew: Callable[[], None]) -> None:
    """Calls a bound method in every forked child from now on, for as long as its object lives.

    Args:
        renew: A method that replaces locks, threads and sockets and empties queues: what the parent holds, it sends.
    """
    # One callback for all: a process may configure often, and what is registered with the system stays for ever.
    _renewals[:] = [each for each in _renewals if each() is not None]
    _renewals.append(weakref.WeakMethod(renew))


def _renew_all() -> None:
    for each in _renewals:
        renew = each()
        if renew is not None:
            renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_all)
