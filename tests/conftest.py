"""Fixtures for all tests, and guards that fail a test which could affect the next one."""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import opentelemetry.trace
import pytest
from hypothesis import HealthCheck, settings
from opentelemetry.util._once import Once

from mlflow_otlp_exporter._internal.mlflow_api import client as api_client
from mlflow_otlp_exporter._internal.mlflow_api.trace_updater import TraceUpdater
from mlflow_otlp_exporter._internal.tracing.spans import use_provider
from support.markers import Watch, watch_logs
from support.mlflow_server import MLflowServer
from support.needs import NEEDS
from support.scripted_server import ScriptedServer

THREAD_GRACE_SECONDS = 5.0
HARNESS_THREADS = ("pytest_timeout", "execnet")
WORKSPACES = ("team-a", "team-b")

_SETTINGS = re.compile(r"(MLFLOW_|OTEL_).*|.*(_proxy|_PROXY)|(REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE)")
_PYTEST_VARIABLE = "PYTEST_CURRENT_TEST"
_MISSING = pytest.StashKey[list[str]]()
_MISSING_PROPERTY = "missing-need"

# No deadline: an example takes long on a busy machine.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# `nohup` and background jobs of a shell ignore these signals, and the children of the tests would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(_number, _handler)

# Isolation


def reset_tracer_provider() -> None:
    """Reset OpenTelemetry to its state before a tracer provider was set.

    The API lets a process set its provider once and cannot reset it, so this function changes the module's variables.
    It does not shut the provider down: the test that started a provider must do that, and the thread guard fails a
    test that did not.
    """
    module = opentelemetry.trace
    for name in ("_TRACER_PROVIDER", "_TRACER_PROVIDER_SET_ONCE"):
        assert hasattr(module, name), f"this OpenTelemetry stores its provider elsewhere: no {name}"
    module._TRACER_PROVIDER = None
    module._TRACER_PROVIDER_SET_ONCE = Once()


def find_leaked_threads(before: set[threading.Thread]) -> list[str]:
    """Return the names of new threads that do not end within THREAD_GRACE_SECONDS."""
    started = [
        thread
        for thread in threading.enumerate()
        if thread not in before
        and not thread.name.startswith(HARNESS_THREADS)
        # A thread started outside Python cannot be joined, and Python does not know whether it is alive.
        and not isinstance(thread, threading._DummyThread)
    ]
    end = time.monotonic() + THREAD_GRACE_SECONDS
    for thread in started:
        thread.join(max(0.0, end - time.monotonic()))
    return [thread.name for thread in started if thread.is_alive()]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != _PYTEST_VARIABLE}


@pytest.fixture(scope="session")
def watched_logs() -> Iterator[Watch]:
    """All logs of the session, watched for prompts and credentials."""
    with watch_logs() as watch:
        yield watch


@pytest.fixture(autouse=True)
def isolate_test(tmp_path_factory: pytest.TempPathFactory, watched_logs: Watch) -> Iterator[None]:
    """Remove the developer's settings, and fail a test that leaves threads or variables behind or logs secrets.

    The fixture does not use `monkeypatch`, so that a test's own changes with `monkeypatch` are undone before the check.
    """
    watched_logs.leaks.clear()
    threads = set(threading.enumerate())
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(_SETTINGS.fullmatch, list(os.environ)):
            patch.delenv(name)
        # An instrumentation stays on for the rest of the process, so only tests of instrumentations enable it.
        patch.setenv("MLFLOW_OTLP_AUTO_INSTRUMENT", "false")
        # Tests count requests, so trace metadata updates for older servers and the completion of traces without a root
        # are off: see `trace_updates`.
        patch.setattr(api_client, "TraceUpdater", _updater_if_requested)
        # The tests may run in a pod.
        patch.setenv("MLFLOW_OTLP_SERVICE_ACCOUNT_DIR", "none")
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_STATE_HOME", str(home / ".local" / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        reset_tracer_provider()
        before = _environment()

        yield

        after = _environment()
        reset_tracer_provider()
        use_provider(None)  # reset the provider that a test passed to configure()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        for name in changed:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
    complaints = []
    if leaked := find_leaked_threads(threads):
        complaints.append(f"threads still alive: {', '.join(leaked)}")
    if changed:  # names only, as values may be secrets
        complaints.append(f"environment variables changed: {', '.join(changed)}")
    if complaints:
        pytest.fail("the test left behind " + "; ".join(complaints), pytrace=False)
    if watched_logs.leaks:
        pytest.fail("planted prompts or credentials are in the log: " + "; ".join(watched_logs.leaks), pytrace=False)


def _updater_if_requested(*arguments: Any, everything: bool) -> TraceUpdater | None:
    return TraceUpdater(*arguments, everything=everything) if everything else None


@pytest.fixture
def trace_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enable trace metadata updates for older servers and completion of traces without a root, as outside tests."""
    monkeypatch.setattr(api_client, "TraceUpdater", TraceUpdater)


# Servers


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    """A server whose answers the test defines."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A real MLflow server of the current environment. All tests share it, so each test uses its own experiments."""
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def workspace_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A real MLflow server with the workspaces `default`, `team-a` and `team-b`."""
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow-workspaces"), workspaces=True)
    for name in WORKSPACES:
        server.create_workspace(name)
    yield server
    server.stop()


# Selection of tests


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --matrix."""
    parser.addoption("--matrix", action="store_true", help="run the tests across MLflow versions as well")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    # Of the plugin that this project ships, for the code of docs/testing.md in an environment without its entry point.
    config.addinivalue_line("markers", "mlflow_traces: arguments of configure() for the fixture mlflow_traces")
    config.addinivalue_line("markers", "matrix: runs across MLflow versions; only with --matrix")
    config.addinivalue_line(
        "markers",
        "needs(*programs): skipped where one of these programs is missing, or failed if REQUIRE_ALL=1",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the matrix without --matrix, and find the programs that tests need."""
    if not config.getoption("--matrix"):
        deselected = [item for item in items if item.get_closest_marker("matrix")]
        if deselected:
            config.hook.pytest_deselected(items=deselected)
            items[:] = [item for item in items if not item.get_closest_marker("matrix")]
    is_installed = {program: need.find() is not None for program, need in NEEDS.items()}
    for item in items:
        programs = [str(program) for marker in item.iter_markers("needs") for program in marker.args]
        unknown = sorted(set(programs) - NEEDS.keys())
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} needs {unknown}, which tests/support/needs.py lacks")
        item.stash[_MISSING] = sorted({program for program in programs if not is_installed[program]})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are missing, or fail it if REQUIRE_ALL=1."""
    missing = item.stash.get(_MISSING, [])
    if not missing:
        return
    item.user_properties += [(_MISSING_PROPERTY, program) for program in missing]
    reason = "needs " + ", ".join(f"{program} ({NEEDS[program].how})" for program in missing)
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"REQUIRE_ALL=1, and this test {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the missing programs and how to install them."""
    missing = Counter(
        str(program)
        for outcome in ("skipped", "error", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, program in getattr(report, "user_properties", [])
        if name == _MISSING_PROPERTY
    )
    if missing:
        terminalreporter.section("left out: programs that are missing here")
        for program, count in sorted(missing.items()):
            tests = "1 test" if count == 1 else f"{count} tests"
            terminalreporter.write_line(f"{program}: {tests}. {NEEDS[program].how}")
