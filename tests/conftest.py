"""Fixtures for all tests, and the guards that keep one test from changing the next."""

import os
import re
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
from mlflow_otlp_exporter._internal.tracing.traced import use_provider
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

# An example may take as long as a busy machine has other things to do.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Isolation


def reset_tracer_provider() -> None:
    """Give OpenTelemetry back its state of before any tracer provider was set.

    The API lets a process set its provider once and has no way back, so this reaches into its module. It does
    not shut the provider down: the test that started one does, and the thread guard tells which did not.
    """
    module = opentelemetry.trace
    for name in ("_TRACER_PROVIDER", "_TRACER_PROVIDER_SET_ONCE"):
        assert hasattr(module, name), f"this OpenTelemetry keeps its provider elsewhere: no {name}"
    module._TRACER_PROVIDER = None
    module._TRACER_PROVIDER_SET_ONCE = Once()


def leaked_threads(before: set[threading.Thread]) -> list[str]:
    """Return the names of the threads started since that do not end within the grace."""
    started = [
        thread
        for thread in threading.enumerate()
        if thread not in before
        and not thread.name.startswith(HARNESS_THREADS)
        # A thread started outside Python: it cannot be joined, and nobody here knows whether it lives.
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
    """Take away the developer's settings, and fail a test that leaves threads or variables behind, or leaks secrets.

    It does not use `monkeypatch`, so that what a test sets with that is undone when this looks.
    """
    watched_logs.found.clear()
    threads = set(threading.enumerate())
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(_SETTINGS.fullmatch, list(os.environ)):
            patch.delenv(name)
        # Instrumentations stay on for the rest of the process: tests of them say so.
        patch.setenv("MLFLOW_OTLP_AUTO_INSTRUMENT", "false")
        # Trace metadata updates of older servers would be among the requests that tests count: see `trace_updates`.
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
        use_provider(None)  # what a test gave to configure()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        for name in changed:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
    complaints = []
    if leaked := leaked_threads(threads):
        complaints.append(f"threads still alive: {', '.join(leaked)}")
    if changed:  # names only, as values may be secrets
        complaints.append(f"environment variables changed: {', '.join(changed)}")
    if complaints:
        pytest.fail("the test left behind " + "; ".join(complaints), pytrace=False)
    if watched_logs.found:
        pytest.fail("planted prompts or credentials are in the log: " + "; ".join(watched_logs.found), pytrace=False)


def _updater_if_requested(*arguments: Any, everything: bool) -> TraceUpdater | None:
    return TraceUpdater(*arguments, everything=everything) if everything else None


@pytest.fixture
def trace_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send trace metadata updates to older servers, as without tests."""
    monkeypatch.setattr(api_client, "TraceUpdater", TraceUpdater)


# Servers


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    """A server that answers as the test tells it."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A real MLflow server of the running environment, shared by all tests: use experiments of your own."""
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def workspace_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """The same with workspaces: `default`, `team-a` and `team-b`."""
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow-workspaces"), workspaces=True)
    for name in WORKSPACES:
        server.create_workspace(name)
    yield server
    server.stop()


# What is run, and what is left out


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --matrix."""
    parser.addoption("--matrix", action="store_true", help="run the tests across MLflow versions as well")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", "matrix: runs across MLflow versions; only with --matrix")
    config.addinivalue_line(
        "markers",
        "needs(*programs): skipped where one of these programs is missing, or failed if REQUIRE_ALL=1",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the matrix unless asked for, and look for what the tests need."""
    if not config.getoption("--matrix"):
        left_out = [item for item in items if item.get_closest_marker("matrix")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
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
    """Skip a test that needs what is not here, or fail it where everything has to be."""
    missing = item.stash.get(_MISSING, [])
    if not missing:
        return
    item.user_properties += [(_MISSING_PROPERTY, program) for program in missing]
    reason = "needs " + ", ".join(f"{program} ({NEEDS[program].how})" for program in missing)
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"REQUIRE_ALL=1, and this test {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was left out, and how to get it."""
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
