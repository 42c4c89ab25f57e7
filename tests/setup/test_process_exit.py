"""Unit tests of the exit hooks; tests/process/test_processes.py ends real processes."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.setup import process_exit as process_exit_module
from mlflow_otlp_exporter._internal.setup.process_exit import MultiprocessingExitHook, install_sigterm_handler
from support.children import run_in_fork

Handler = Callable[[int, FrameType | None], Any]


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    """SIGTERM has its default action."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


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


# SIGTERM


@pytest.mark.usefixtures("default_sigterm")
@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_sigterm_handler_of_the_app_is_kept(own: Any) -> None:
    signal.signal(signal.SIGTERM, own)
    assert not install_sigterm_handler(lambda _: None)
    assert signal.getsignal(signal.SIGTERM) is own


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_handler_in_another_thread_is_not_installed() -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(install_sigterm_handler(lambda _: None)))
    thread.start()
    thread.join()
    assert results == [False]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
def test_later_sigterm_handler_of_the_app_replaces_ours() -> None:
    assert install_sigterm_handler(lambda _: None)
    assert not install_sigterm_handler(lambda _: None)  # ours is installed
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

    assert install_sigterm_handler(shut_down)
    installed_handler()(signal.SIGTERM, None)
    # In another thread, because the interrupted one may hold a lock; Docker kills after 10 s.
    assert calls == [(4.0, "mlflow-otlp-end", False)]
    assert sent_signals == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_ends_the_process_if_the_shutdown_hangs(
    sent_signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_exit_module, "_SIGTERM_TIMEOUT_SECONDS", -0.9)  # the handler waits one second longer
    end = threading.Event()
    assert install_sigterm_handler(lambda _: end.wait(60))
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
    assert install_sigterm_handler(lambda _: threads.append(threading.current_thread().name))
    monkeypatch.setattr(threading.Thread, "start", start)
    installed_handler()(signal.SIGTERM, None)
    assert threads == ["MainThread"]
    assert len(sent_signals) == 1


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_ends_the_process_if_the_shutdown_raises(
    sent_signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no")

    assert install_sigterm_handler(fail)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="no"):
        installed_handler()(signal.SIGTERM, None)
    assert len(sent_signals) == 1


# MultiprocessingExitHook


class Util:
    """The functions of `multiprocessing.util` that the hook calls."""

    def __init__(self) -> None:
        self.after_fork: list[tuple[Any, Callable[[Any], None]]] = []
        self.finalizers: list[tuple[Callable[[], None], int]] = []

    def register_after_fork(self, what: Any, call: Callable[[Any], None]) -> None:
        self.after_fork.append((what, call))

    def Finalize(self, what: Any, call: Callable[[], None], exitpriority: int) -> None:  # noqa: N802 - its name
        assert what is None
        self.finalizers.append((call, exitpriority))


@pytest.fixture
def util(monkeypatch: pytest.MonkeyPatch) -> Util:
    module = Util()
    monkeypatch.setitem(sys.modules, "multiprocessing.util", module)
    return module


def set_child(monkeypatch: pytest.MonkeyPatch, child: bool) -> None:
    process = SimpleNamespace(parent_process=lambda: "its parent" if child else None)
    monkeypatch.setitem(sys.modules, "multiprocessing.process", process)


@pytest.mark.parametrize("child", [True, False])
def test_exit_hook_shuts_down_a_child_after_the_apps_finalizers(
    util: Util, monkeypatch: pytest.MonkeyPatch, child: bool
) -> None:
    shutdowns: list[bool] = []
    hook = MultiprocessingExitHook(lambda: shutdowns.append(True))
    hook.install()
    hook.install()
    [(end, priority)] = util.finalizers  # once, however often the hook is installed
    assert priority < 0
    set_child(monkeypatch, child)
    end()
    assert shutdowns == [True] * child  # the parent uses `atexit`


def test_exit_hook_survives_that_a_child_clears_its_finalizers(util: Util) -> None:
    MultiprocessingExitHook(lambda: None).install()
    [(what, call)] = util.after_fork
    util.finalizers.clear()  # as a child of `multiprocessing` does when it starts
    call(what)
    assert len(util.finalizers) == 1


def test_forked_child_installs_its_own_finalizer(util: Util) -> None:
    hook = MultiprocessingExitHook(lambda: None)
    hook.install()

    def child() -> bool:
        return count_finalizers() == 2

    def count_finalizers() -> int:  # without those of other tests
        return [call for call, _ in util.finalizers].count(hook._on_process_exit)

    assert run_in_fork(child)
    assert count_finalizers() == 1


def test_exit_hook_does_not_import_multiprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("multiprocessing.util", "multiprocessing.process", "celery.signals"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    MultiprocessingExitHook(lambda: None).install()
    assert "multiprocessing.util" not in sys.modules


@pytest.mark.usefixtures("util")
def test_celery_worker_shuts_down_at_celerys_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[tuple[Callable[..., None], dict[str, Any]]] = []
    shutdown = SimpleNamespace(connect=lambda call, **more: connected.append((call, more)))
    celery = SimpleNamespace(worker_process_shutdown=shutdown)
    monkeypatch.setitem(sys.modules, "celery.signals", celery)
    shutdowns: list[bool] = []
    MultiprocessingExitHook(lambda: shutdowns.append(True)).install()
    [(ends, more)] = connected
    assert more["weak"] is False
    ends(sender=None, pid=1, exitcode=0)
    assert shutdowns == [True]
