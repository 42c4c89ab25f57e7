"""Forked children that cannot run on into the test session of their parent."""

import os
import signal
import threading
from collections.abc import Callable

from support.markers import WATCH


def run_in_fork(function: Callable[[], object], seconds: float = 60.0) -> bool:
    """Calls a function in a forked child; whether it returned something true, in time, without raising or leaking."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's lines are not seen
        good = False
        try:
            good = bool(function()) and not WATCH.found
        finally:
            os._exit(0 if good else 1)
    killer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    killer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        killer.cancel()
        killer.join()
