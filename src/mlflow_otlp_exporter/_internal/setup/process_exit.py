"""Export at ends of a process without `atexit`: children of `multiprocessing` and Celery workers."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any


class MultiprocessingExitHook:
    """Calls a function when a child of `multiprocessing` or a Celery worker ends, which run no `atexit` handlers."""

    def __init__(self, shutdown: Callable[[], object]) -> None:
        self._shutdown = shutdown
        self._installed_pid = 0
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self.install)

    def install(self) -> None:
        """Install the hook for this process and its children. The parent process skips the call at its end."""
        util = _loaded_multiprocessing_module("util")
        if util is not None and self._installed_pid != os.getpid():
            self._installed_pid = os.getpid()
            # At their start, most children clear all finalizers, and then run the functions registered here.
            util.register_after_fork(self, MultiprocessingExitHook._register_finalizer)
            self._register_finalizer()
        signals = sys.modules.get("celery.signals")
        if signals is not None:
            # Celery's workers use a copy of `multiprocessing`, and call `os._exit` after they have sent this signal.
            signals.worker_process_shutdown.connect(self._on_worker_exit, weak=False, dispatch_uid="mlflow-otlp")

    def _on_worker_exit(self, **_: Any) -> None:
        self._shutdown()

    def _register_finalizer(self) -> None:
        util = _loaded_multiprocessing_module("util")
        # After the application's finalizers, whose last spans are sent, too.
        util.Finalize(None, self._on_process_exit, exitpriority=-1000)

    def _on_process_exit(self) -> None:
        process = _loaded_multiprocessing_module("process")
        if process is not None and process.parent_process() is not None:
            # The child would wait for them after its finalizers, and then call `os._exit`.
            for thread in threading.enumerate():
                if not thread.daemon and thread is not threading.current_thread():
                    thread.join()
            self._shutdown()


def _loaded_multiprocessing_module(name: str) -> Any:
    # Not imported here: an import of `multiprocessing` takes half as long as the import of this library.
    return sys.modules.get(f"multiprocessing.{name}")
