"""The ends of a process besides an ordinary one: SIGTERM, and children of `multiprocessing` and Celery."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

# Docker waits 10 s before it kills, Kubernetes 30 s; what is not sent by then is on disk.
_SIGTERM_SECONDS = 4.0

Shutdown = Callable[[float], object]


def on_sigterm(shutdown: Shutdown) -> bool:
    """Has SIGTERM call a function before it does what it does by default, unless the app handles it itself.

    A handler that the app sets later takes this one's place.

    Args:
        shutdown: Is given the seconds that it may take.

    Returns:
        Whether it is so now.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return False  # there is no such signal, or none may be handled
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False

    def handle(number: int, _: object) -> None:
        # In a thread of its own: the one that is interrupted here may hold any lock, also one that is needed now.
        thread = threading.Thread(target=shutdown, args=(_SIGTERM_SECONDS,), name="mlflow-otlp-end", daemon=True)
        try:
            thread.start()
            thread.join(_SIGTERM_SECONDS + 1.0)
        except RuntimeError:  # no more threads
            shutdown(_SIGTERM_SECONDS)
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)
    return True


class MultiprocessingExitHook:
    """Has a function called when a child of `multiprocessing` ends, which leaves without running `atexit`'s.

    Args:
        shutdown: Is called without arguments.
    """

    def __init__(self, shutdown: Callable[[], object]) -> None:
        self._shutdown = shutdown
        self._arranged_in = 0
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
            os.register_at_fork(after_in_child=self.arrange)

    def arrange(self) -> None:
        """Arranges it for this process and its children; whether it is such a child itself shows when it ends."""
        util = _multiprocessing("util")
        if util is not None and self._arranged_in != os.getpid():
            self._arranged_in = os.getpid()
            # Most children forget when they start what is to be called at their end, then call this.
            util.register_after_fork(self, MultiprocessingExitHook._at_end)
            self._at_end()
        signals = sys.modules.get("celery.signals")
        if signals is not None:
            # Celery's children come of a copy of `multiprocessing`, and leave by `os._exit` when this was sent.
            signals.worker_process_shutdown.connect(self._worker_ends, weak=False, dispatch_uid="mlflow-otlp")

    def _worker_ends(self, **_: Any) -> None:
        self._shutdown()

    def _at_end(self) -> None:
        util = _multiprocessing("util")
        # After the app's own, whose last spans are to be sent.
        util.Finalize(None, self._end, exitpriority=-1000)

    def _end(self) -> None:
        process = _multiprocessing("process")
        if process is not None and process.parent_process() is not None:
            self._shutdown()


def _multiprocessing(name: str) -> Any:
    """The module, if the app uses it: to import it for nothing takes as long as half of this library."""
    return sys.modules.get(f"multiprocessing.{name}")
