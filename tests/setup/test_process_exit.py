"""The ends of a process, decision by decision; tests/process/test_processes.py has real processes come to them."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.setup import process_exit as process_exit_module
from mlflow_otlp_exporter._internal.setup.process_exit import MultiprocessingExitHook, on_sigterm
from support.children import in_child

Handler = Callable[[int, FrameType | None], Any]


@pytest.fixture
def default() -> Iterator[None]:
    """SIGTERM as a process has it that nobody has told anything."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def installed() -> Handler:
    found = signal.getsignal(signal.SIGTERM)
    assert callable(found)
    return found


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that the process sends."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: found.append((process, number)))
    return found


# SIGTERM


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_the_apps_own_way_with_sigterm_stays(own: Any) -> None:
    signal.signal(signal.SIGTERM, own)
    assert not on_sigterm(lambda _: None)
    assert signal.getsignal(signal.SIGTERM) is own


@pytest.mark.usefixtures("default")
def test_another_thread_may_not_handle_signals() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(on_sigterm(lambda _: None)))
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default")
def test_a_handler_that_comes_later_takes_its_place() -> None:
    assert on_sigterm(lambda _: None)
    assert not on_sigterm(lambda _: None)  # ours, by now
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    assert callable(before)
    os.kill(os.getpid(), signal.SIGTERM)
    assert came == [signal.SIGTERM]


@pytest.mark.usefixtures("default")
def test_first_what_is_to_be_saved_then_the_default_action(sent: list[tuple[int, int]]) -> None:
    happened: list[tuple[float, str, bool]] = []

    def save(seconds: float) -> None:
        happened.append((seconds, threading.current_thread().name, bool(sent)))

    assert on_sigterm(save)
    installed()(signal.SIGTERM, None)
    # In another thread, as the one that is interrupted may hold a lock that is needed; Docker kills after 10 s.
    assert happened == [(4.0, "mlflow-otlp-end", False)]
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default")
def test_the_end_comes_also_when_nothing_can_be_saved(
    sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_exit_module, "_SIGTERM_SECONDS", -0.9)  # it waits a second longer than it gives
    hangs = threading.Event()
    assert on_sigterm(lambda _: hangs.wait(60))
    installed()(signal.SIGTERM, None)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    hangs.set()


@pytest.mark.usefixtures("default")
def test_without_a_thread_it_is_saved_here(sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    happened: list[str] = []
    assert on_sigterm(lambda _: happened.append(threading.current_thread().name))
    monkeypatch.setattr(threading.Thread, "start", start)
    installed()(signal.SIGTERM, None)
    assert happened == ["MainThread"]
    assert len(sent) == 1


@pytest.mark.usefixtures("default")
def test_what_fails_while_saving_keeps_nobody_from_ending(
    sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no")

    assert on_sigterm(fail)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="no"):
        installed()(signal.SIGTERM, None)
    assert len(sent) == 1


# MultiprocessingExitHook


class Util:
    """`multiprocessing.util`, as far as it matters."""

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
    found = Util()
    monkeypatch.setitem(sys.modules, "multiprocessing.util", found)
    return found


def is_child(monkeypatch: pytest.MonkeyPatch, child: bool) -> None:
    process = SimpleNamespace(parent_process=lambda: "its parent" if child else None)
    monkeypatch.setitem(sys.modules, "multiprocessing.process", process)


@pytest.mark.parametrize("child", [True, False])
def test_a_child_saves_at_its_end_after_all_that_the_app_does_there(
    util: Util, monkeypatch: pytest.MonkeyPatch, child: bool
) -> None:
    saved: list[bool] = []
    children = MultiprocessingExitHook(lambda: saved.append(True))
    children.arrange()
    children.arrange()
    [(end, priority)] = util.finalizers  # once, however often it is arranged
    assert priority < 0
    is_child(monkeypatch, child)
    end()
    assert saved == [True] * child  # the parent has `atexit`


def test_what_is_arranged_outlives_that_a_child_forgets_all(util: Util) -> None:
    MultiprocessingExitHook(lambda: None).arrange()
    [(what, call)] = util.after_fork
    util.finalizers.clear()  # as a child of `multiprocessing` does when it starts
    call(what)
    assert len(util.finalizers) == 1


def test_a_forked_child_arranges_anew(util: Util) -> None:
    children = MultiprocessingExitHook(lambda: None)
    children.arrange()

    def child() -> bool:
        return arranged() == 2

    def arranged() -> int:  # those of other tests start afresh as well
        return [call for call, _ in util.finalizers].count(children._end)

    assert in_child(child)
    assert arranged() == 1


def test_nothing_is_imported_for_an_app_without_children(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("multiprocessing.util", "multiprocessing.process", "celery.signals"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    MultiprocessingExitHook(lambda: None).arrange()
    assert "multiprocessing.util" not in sys.modules


@pytest.mark.usefixtures("util")
def test_celerys_children_save_when_celery_says_that_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[tuple[Callable[..., None], dict[str, Any]]] = []
    shutdown = SimpleNamespace(connect=lambda call, **more: connected.append((call, more)))
    celery = SimpleNamespace(worker_process_shutdown=shutdown)
    monkeypatch.setitem(sys.modules, "celery.signals", celery)
    saved: list[bool] = []
    MultiprocessingExitHook(lambda: saved.append(True)).arrange()
    [(ends, more)] = connected
    assert more["weak"] is False
    ends(sender=None, pid=1, exitcode=0)
    assert saved == [True]
