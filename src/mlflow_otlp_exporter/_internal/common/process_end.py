"""The end of the process: whether it has begun, and signals whose default action is to end it."""

from __future__ import annotations

import _thread
import functools
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import log_exception

# Docker kills a container after 10 s, Kubernetes a pod after 30 s. What is not sent by then is on disk.
_TIMEOUT_SECONDS = 4.0
# SIGHUP comes when a terminal is closed.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# Handlers of these may raise: of Ctrl-C, of servers that end workers, and of time limits.
_INTERRUPTING_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGABRT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)
# Modules whose functions hold what a shutdown in another thread would wait for.
_BUSY_MODULES = ("mlflow_otlp_exporter._internal.processing.", "mlflow_otlp_exporter._internal.delivery.")

_Call = Callable[[float], object]

_ends: list[tuple[_Call, _Call]] = []  # a shutdown and a flush
_set_handler = signal.signal


class Exporter(Protocol):
    def shutdown(self, timeout_millis: float) -> None: ...


_exporters: weakref.WeakSet[Exporter] = weakref.WeakSet()


class _State:
    # Process ids, because a forked child inherits them.
    ending_pid = 0
    signalled_pid = 0
    is_shut_down = False


def begin_end() -> None:
    """Declare that the process ends: spans that end from now on are written to disk."""
    _State.ending_pid = os.getpid()


def is_ending() -> bool:
    # While `atexit` handlers run, the main thread counts as ended.
    return _State.ending_pid == os.getpid() or not threading.main_thread().is_alive()


def silence_logging_errors() -> None:
    """At the end of the process, streams of log handlers may be closed: `logging` would print a traceback for each."""
    if is_ending():
        logging.raiseExceptions = False


def run_closing_steps(timeout_seconds: float, *steps: Callable[[float], object], is_outermost: bool = False) -> None:
    """Call each step with the seconds that remain, also after one was interrupted, and raise the interruption then.

    A second signal, such as another Ctrl-C, raises an exception where a step waits. The steps that follow share a
    second: what is not sent by then goes to disk. At the end of the process, they are not interrupted again, and with
    `is_outermost`, nothing is raised: nothing follows that could handle it.
    """
    deadline = time.monotonic() + timeout_seconds
    interruption: BaseException | None = None
    ignored_handlers: dict[int, Any] = {}
    for step in steps:
        try:
            step(max(0.0, deadline - time.monotonic()))
        except BaseException as error:  # noqa: BLE001 - the other steps save spans
            if isinstance(error, Exception) and not must_propagate(error):
                log_exception(error, "shut down")
                continue
            ignored_handlers |= _ignore_signals()
            interruption = interruption or error
            deadline = min(deadline, time.monotonic() + 1.0)
    for number, handler in ignored_handlers.items():
        _set_handler(number, handler)
    if interruption is not None and not (is_outermost and is_ending()):
        raise interruption


def _ignore_signals() -> dict[int, Any]:
    """At the end of the process, ignore signals whose handlers may raise; return these handlers."""
    handlers: dict[int, Any] = {}
    for number in _INTERRUPTING_SIGNALS if is_ending() else ():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not _handle:
            with suppress(ValueError):  # not in the main thread, where no handler runs
                _set_handler(number, signal.SIG_IGN)
                handlers[number] = handler
    return handlers


def install_sigterm_handler(shutdown: _Call, flush: _Call) -> bool:
    """Call `shutdown` with a timeout in seconds at SIGTERM and SIGHUP, before the default action.

    An application's own handler is kept, and a handler that the application sets later replaces this one. Return
    whether the handler of SIGTERM was installed now. `flush` is called instead in the first process of a container, for
    which the kernel ignores the default action.
    """
    if sys.platform == "win32":
        return False  # no such signals
    if (shutdown, flush) not in _ends:
        _ends.append((shutdown, flush))
    _replace_restored_default()
    defaults = [number for number in _SIGNALS if _has_default_action(number)]
    try:
        for number in defaults:
            _set_handler(number, _handle)
    except ValueError:
        return False  # not in the main thread; under eventlet, `threading.current_thread` does not say so
    return signal.SIGTERM in defaults


def shut_down_at_signal(exporter: Exporter) -> None:
    """Flush the global tracer provider, then shut the exporter down, at SIGTERM and SIGHUP."""
    _exporters.add(exporter)
    install_sigterm_handler(_shut_down_exporters, _flush_provider)


def _flush_provider(timeout_seconds: float) -> None:
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.force_flush(int(timeout_seconds * 1000))


def _shut_down_exporters(timeout_seconds: float) -> None:
    exporters = list(_exporters)
    for exporter in exporters:
        getattr(exporter, "end_open_spans", int)()
    _flush_provider(timeout_seconds / 2)
    for exporter in exporters:
        exporter.shutdown(timeout_seconds * 500)


def _has_default_action(number: int) -> bool:
    if signal.getsignal(number) is not signal.SIG_DFL:
        return False
    with suppress(OSError, ValueError, IndexError):
        # uWSGI and granian set handlers in C, of which Python does not know. They end the interpreter by themselves.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return not int(line.split()[1], 16) >> (number - 1) & 1
    return True


def _replace_restored_default() -> None:
    """Set this handler instead of the default action when a server takes its own handler back.

    uvicorn handles SIGTERM while it imports the application, ends gracefully, gives SIGTERM its default action back and
    raises it again. Gunicorn's uvicorn workers reset the signals of the arbiter. Neither runs any other code before the
    process is killed.
    """
    set_handler = signal.signal
    if getattr(set_handler, "replaces_restored_default", False):
        return

    @functools.wraps(set_handler)
    def replace_default(signalnum: int, handler: Any) -> Any:
        if signalnum in _SIGNALS and handler == signal.SIG_DFL:
            current = signal.getsignal(signalnum)
            handler = _handle if callable(current) and current is not _handle else handler
        return set_handler(signalnum, handler)

    replace_default.replaces_restored_default = True  # type: ignore[attr-defined]
    signal.signal = replace_default


def _handle(number: int, frame: FrameType | None) -> None:
    is_first_process = os.getpid() == 1
    if _State.signalled_pid == os.getpid() and not is_first_process:
        if _State.is_shut_down:
            _run_default_action(number)
        return  # a second signal, during the shutdown that the first one began
    if not is_first_process:
        _State.signalled_pid, _State.is_shut_down = os.getpid(), False
        begin_end()
    if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
        # gevent or eventlet: the handler may run in the hub, which must not wait for a greenlet.
        _thread.start_new_thread(_flush if is_first_process else _shut_down_and_resend, (number,))
        return
    can_wait = not (is_first_process or _is_busy(frame))
    target = _flush if is_first_process else _shut_down if can_wait else _shut_down_and_resend
    # In another thread, because the interrupted one may hold a lock that the shutdown needs.
    thread = threading.Thread(target=target, args=(number,), name="mlflow-otlp-end", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system allows no more threads
        target(number)
    if can_wait:
        if thread.ident is not None:
            thread.join(_TIMEOUT_SECONDS + 1.0)
        _run_default_action(number)
    # Else the interrupted flush or shutdown goes on meanwhile.


def _is_busy(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_BUSY_MODULES):
            return True
        frame = frame.f_back
    return False


def _call_all(calls: Iterable[_Call]) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    for index, call in enumerate(calls):
        try:
            call(max(0.2, deadline - time.monotonic()) if index else _TIMEOUT_SECONDS)
        except Exception as error:  # noqa: BLE001 - the process must end
            log_exception(error, "send spans at a signal")


def _flush(_number: int) -> None:
    _call_all([flush for _, flush in _ends])


def _shut_down(_number: int) -> None:
    _call_all([shutdown for shutdown, _ in _ends])


def _shut_down_and_resend(number: int) -> None:
    _shut_down(number)
    _State.is_shut_down = True
    os.kill(os.getpid(), number)  # only the main thread may set a handler


def _run_default_action(number: int) -> None:
    _set_handler(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
