"""Run functions in forked children, which never return into the test session of their parent."""

import os
import signal
import threading
from collections.abc import Callable

from support.markers import WATCH


def run_in_fork(function: Callable[[], object], timeout_seconds: float = 60.0) -> bool:
    """Call a function in a forked child; return whether its result is true, in time, without an exception or a leak."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's lines are not seen
        is_success = False
        try:
            is_success = bool(function()) and not WATCH.leaks
        finally:
            os._exit(0 if is_success else 1)
    killer = threading.Timer(timeout_seconds, os.kill, (child, signal.SIGKILL))
    killer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        killer.cancel()
        killer.join()
