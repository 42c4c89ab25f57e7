"""Unit tests of the signal handlers; tests/process/test_process_ends.py ends real processes."""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.common import problem_log, process_end
from mlflow_otlp_exporter._internal.common.process_end import install_sigterm_handler, run_closing_steps
from support.interruptions import TimeLimit, handle_signal
from support.traces import wait_until

Handler = Callable[[int, FrameType | None], Any]


def ignore(_timeout: float) -> None:
    pass


@pytest.fixture
def default_sigterm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM has its default action, and the process has not begun to end."""
    monkeypatch.setattr(process_end, "_ends", [])
    monkeypatch.setattr(signal, "signal", signal.signal)
    for name, value in {"ending_pid": 0, "signalled_pid": 0, "is_shut_down": False}.items():
        monkeypatch.setattr(process_end._State, name, value)
    before = {number: process_end._set_handler(number, signal.SIG_DFL) for number in process_end._SIGNALS}
    yield
    for number, handler in before.items():
        process_end._set_handler(number, handler)


def installed_handler() -> Handler:
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)
    return handler


@pytest.fixture
def sent_signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that the process sends."""
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: signals.append((process, number)))
    return signals


@pytest.mark.usefixtures("default_sigterm")
@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_sigterm_handler_of_the_app_is_kept(own: Any) -> None:
    signal.signal(signal.SIGTERM, own)
    assert not install_sigterm_handler(ignore, ignore)
    assert signal.getsignal(signal.SIGTERM) is own


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_handler_in_another_thread_is_not_installed() -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(install_sigterm_handler(ignore, ignore)))
    thread.start()
    thread.join()
    assert results == [False]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
def test_later_sigterm_handler_of_the_app_replaces_ours() -> None:
    assert install_sigterm_handler(ignore, ignore)
    assert not install_sigterm_handler(ignore, ignore)  # ours is installed
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    assert callable(before)
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_shuts_down_then_runs_the_default_action(sent_signals: list[tuple[int, int]]) -> None:
    calls: list[tuple[float, str, bool]] = []

    def shut_down(timeout: float) -> None:
        calls.append((timeout, threading.current_thread().name, bool(sent_signals)))

    assert install_sigterm_handler(shut_down, ignore)
    installed_handler()(signal.SIGTERM, None)
    # In another thread, because the interrupted one may hold a lock; Docker kills after 10 s.
    assert calls == [(4.0, "mlflow-otlp-end", False)]
    assert sent_signals == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_ends_the_process_if_the_shutdown_hangs(
    sent_signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_end, "_TIMEOUT_SECONDS", -0.9)  # the handler waits one second longer
    end = threading.Event()
    assert install_sigterm_handler(lambda _: end.wait(60), ignore)
    installed_handler()(signal.SIGTERM, None)
    assert sent_signals == [(os.getpid(), signal.SIGTERM)]
    end.set()


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_without_a_new_thread_shuts_down_in_the_main_thread(
    sent_signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads: list[str] = []
    assert install_sigterm_handler(lambda _: threads.append(threading.current_thread().name), ignore)
    monkeypatch.setattr(threading.Thread, "start", start)
    installed_handler()(signal.SIGTERM, None)
    assert threads == ["MainThread"]
    assert len(sent_signals) == 1


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_ends_the_process_if_the_shutdown_raises(
    sent_signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    others: list[float] = []
    assert install_sigterm_handler(fail, ignore)
    install_sigterm_handler(others.append, ignore)
    monkeypatch.setattr(threading.Thread, "start", fail)
    installed_handler()(signal.SIGTERM, None)
    assert len(sent_signals) == len(others) == 1
    assert "could not send spans at a signal" in caplog.text


@pytest.mark.usefixtures("default_sigterm")
def test_second_signal_during_the_shutdown_has_no_effect(sent_signals: list[tuple[int, int]]) -> None:
    calls: list[float] = []

    def shut_down(timeout: float) -> None:
        calls.append(timeout)
        installed_handler()(signal.SIGTERM, None)

    assert install_sigterm_handler(shut_down, ignore)
    installed_handler()(signal.SIGTERM, None)
    assert (len(calls), len(sent_signals)) == (1, 1)


@pytest.mark.usefixtures("default_sigterm")
def test_signal_for_the_first_process_of_a_container_flushes(
    sent_signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[float] = []
    ends: list[float] = []
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert install_sigterm_handler(ends.append, flushes.append)
    for count in (1, 2):
        installed_handler()(signal.SIGTERM, None)
        wait_until(lambda count=count: len(flushes) == count)  # type: ignore[misc]
    assert (ends, sent_signals, process_end.is_ending()) == ([], [], False)


@pytest.mark.usefixtures("default_sigterm")
def test_default_restored_by_a_server_is_replaced_by_ours() -> None:
    def handle_exit(*_: object) -> None:
        """Of a server that runs when the application is imported."""

    original = signal.signal(signal.SIGTERM, handle_exit)
    assert not install_sigterm_handler(ignore, ignore)
    assert signal.getsignal(signal.SIGTERM) is handle_exit
    assert signal.signal(signal.SIGTERM, original) is handle_exit
    assert installed_handler() is process_end._handle
    # An application that removes this library's handler gets the default action.
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is process_end._handle
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
def test_sighup_is_handled_unless_it_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as below nohup
    assert install_sigterm_handler(ignore, ignore)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert not install_sigterm_handler(ignore, ignore)  # SIGTERM has it already
    assert signal.getsignal(signal.SIGHUP) is process_end._handle


@pytest.mark.usefixtures("default_sigterm")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux lists the handlers of a process")
def test_handler_in_c_is_kept() -> None:
    faulthandler.register(signal.SIGTERM)
    try:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not install_sigterm_handler(ignore, ignore)
    finally:
        faulthandler.unregister(signal.SIGTERM)
    assert install_sigterm_handler(ignore, ignore)


@pytest.mark.parametrize(
    ("error", "index", "is_raised"),
    [
        (KeyboardInterrupt(), 0, True),
        (KeyboardInterrupt(), 1, True),
        (KeyboardInterrupt(), 2, True),
        (SystemExit(3), 1, True),
        (RuntimeError(), 0, False),
        (OSError(), 2, False),
    ],
)
def test_closing_steps_with_failing_step_are_all_called(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    index: int,
    is_raised: bool,
) -> None:
    monkeypatch.setattr(problem_log, "_exceptions_logged_at", {})
    seconds: list[float] = []

    def step(timeout_seconds: float) -> None:
        seconds.append(timeout_seconds)
        if len(seconds) == index + 1:
            raise error

    with pytest.raises(type(error)) if is_raised else nullcontext():
        run_closing_steps(60.0, step, step, step)
    assert [value > 1.0 for value in seconds] == [number <= index or not is_raised for number in range(3)]
    assert ("shut down" in caplog.text) is not is_raised


def test_closing_steps_interrupted_twice_raise_the_first_interruption() -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    def end(_seconds: float) -> None:
        raise SystemExit

    with pytest.raises(KeyboardInterrupt):
        run_closing_steps(1.0, interrupt, end)


def test_closing_steps_interrupted_by_a_time_limit_raise_it(caplog: pytest.LogCaptureFixture) -> None:
    seconds: list[float] = []
    with handle_signal(TimeLimit()) as interrupt:
        with pytest.raises(TimeLimit):
            run_closing_steps(60.0, lambda _: interrupt(), seconds.append)
        assert caplog.text == ""
    assert [value <= 1.0 for value in seconds] == [True]


def test_outermost_closing_steps_raise_no_interruption_at_the_end_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_closing_steps(1.0, interrupt, is_outermost=True)
    monkeypatch.setattr(process_end, "is_ending", lambda: True)
    run_closing_steps(1.0, interrupt, is_outermost=True)
    with pytest.raises(KeyboardInterrupt):
        run_closing_steps(1.0, interrupt)


def test_closing_steps_at_the_end_of_the_process_are_interrupted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_end, "is_ending", lambda: True)
    steps: list[str] = []
    with handle_signal(SystemExit()) as interrupt:

        def run_step(_seconds: float) -> None:
            interrupt()
            steps.append("uninterrupted")

        run_closing_steps(60.0, run_step, run_step, run_step, is_outermost=True)
        assert steps == ["uninterrupted"] * 2
        with pytest.raises(SystemExit):
            interrupt()  # the handler is back
