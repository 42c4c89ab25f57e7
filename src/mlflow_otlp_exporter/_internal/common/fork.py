"""Hooks of forked children: there, locks of other threads may be held for ever, and sockets belong to the parent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

_resets: list[weakref.WeakMethod[Callable[[], None]]] = []
_max_reset_count = 64  # then those of deleted objects are removed
_pid = os.getpid()
# Only there if uWSGI runs this process. It forks its workers without Python's hooks.
_uwsgi: Any = sys.modules.get("uwsgi")
LACKS_HOOKS = _uwsgi is not None


def register_fork_reset(reset: Callable[[], None]) -> None:
    """Call a bound method in every forked child, for as long as its object lives.

    The method replaces locks, threads and sockets and empties queues, because the parent sends what it has queued.
    """
    # One callback of the system for all objects: a process may configure often, and callbacks cannot be removed.
    global _max_reset_count  # noqa: PLW0603 - of this process
    if len(_resets) >= _max_reset_count:
        _resets[:] = [reference for reference in _resets if reference() is not None]
        _max_reset_count = 2 * len(_resets) + 64  # at a constant cost per object, however many there are
    _resets.append(weakref.WeakMethod(reset))


def is_uwsgi_master() -> bool:
    return _uwsgi is not None and not (_uwsgi.worker_id() or _uwsgi.mule_id() or _uwsgi.i_am_the_spooler())


def start_thread(thread: threading.Thread) -> bool:
    """Start a thread; False if none can start, because the interpreter is shutting down or the system allows no more.

    In uWSGI's master none starts: a worker that is forked while a thread holds the interpreter's lock hangs.
    """
    if _uwsgi is not None:
        if is_uwsgi_master():
            return False
        # uWSGI ends the interpreter in the thread that receives the signal. The new thread inherits the mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    except RuntimeError:
        return False
    finally:
        if _uwsgi is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return True


def lacks_threads() -> bool:
    """Whether uWSGI runs without `--enable-threads`: threads run only while a request is processed."""
    return _uwsgi is not None and not getattr(_uwsgi, "has_threads", True)


def check_process() -> None:
    """Start afresh in a child that was forked without hooks."""
    if _pid != os.getpid():
        _reset_all()


def _reset_all() -> None:
    global _pid  # noqa: PLW0603 - of this process
    _pid = os.getpid()
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
