"""Unit tests of the exit hook; tests/process/test_processes.py ends real processes."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.setup.process_exit import MultiprocessingExitHook
from support.children import run_in_fork


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
