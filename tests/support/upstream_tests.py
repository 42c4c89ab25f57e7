"""Upstream's own tests of its span exporter, run with `MLflowSpanExporter` in the place of upstream's class.

This module is also the pytest plugin that replaces the class and limits the time of each test. The tests are not copied
into the project: they are downloaded with the release that they belong to.
"""

import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import requests

from support.environments import ROOT, environment, read_lock

_PACKAGE, _VERSION = "opentelemetry-exporter-otlp-proto-http", "1.45.2"
_FOLDER = ROOT / ".cache" / "upstream" / f"{_PACKAGE.replace('-', '_')}-{_VERSION}"
_TIMEOUT_SECONDS = 30
_PROVIDER_VARIABLE = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

# Upstream gives up after six attempts; what is retried in the background afterwards waits as usual.
_MAX_WAITS = 5

_exporters: list[Any] = []


def _pass_delays_to_event() -> None:
    """Wait for a retry with the private event of upstream's exporter, where a test has replaced it."""
    from mlflow_otlp_exporter._internal.common.backoff import BackoffState

    record_failure = BackoffState.record_failure

    def record_and_wait(self: Any, *args: Any, **kwargs: Any) -> float:
        delay = record_failure(self, *args, **kwargs)
        event = _exporters[-1]._client._shutdown_event
        if not isinstance(event, Mock) or event.wait.call_count >= _MAX_WAITS:
            return delay
        event.wait(delay)
        self._resume_at.clear()
        return 0.0

    BackoffState.record_failure = record_and_wait  # type: ignore[method-assign]


class _TransportSession(requests.Session):
    """A session that sends through the transport of upstream's constructor, where upstream's tests look at requests."""

    def __init__(self, exporter: Any) -> None:
        super().__init__()
        self._exporter = exporter

    def request(self, method: Any, url: Any, *_: Any, **options: Any) -> Any:
        request = {name: options[name] for name in ("headers", "data")}
        result = self._exporter._client._transport.request(method, url, timeout=options["timeout"][1], **request)
        if result.error is not None:
            raise result.error
        return result.response


def pytest_configure() -> None:
    """Replace the class, before the tests import it, and let upstream's private names lead to what replaces them."""
    from opentelemetry.exporter.otlp.proto.http import _common, trace_exporter

    from mlflow_otlp_exporter import MLflowSpanExporter
    from mlflow_otlp_exporter._internal.delivery import exporter
    from mlflow_otlp_exporter._internal.transport import credential_provider

    upstream: Any = _common
    own_exporter: Any = exporter

    def find_entry_points(**options: Any) -> Any:
        return upstream.entry_points(**options)  # when it is called: a test replaces it

    vars(credential_provider)["entry_points"] = find_entry_points
    _pass_delays_to_event()

    class Exporter(MLflowSpanExporter):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Settings that any user can make: upstream's default port instead of MLflow's, and spans as they are.
            if not args and "endpoint" not in kwargs and not any(map(os.environ.get, _ENDPOINT_VARIABLES)):
                os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://localhost:4318"
            if len(args) < 8 and not os.environ.get(_PROVIDER_VARIABLE):
                kwargs.setdefault("session", _TransportSession(self))
            super().__init__(*args, enrich=False, **kwargs)
            session = own_exporter.pipeline_of(self)._clients.server._session
            if not isinstance(session, _TransportSession):
                vars(self._client._transport)["_session"] = session
            _exporters.append(self)

    trace_exporter.OTLPSpanExporter = Exporter  # type: ignore[misc]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Let a test fail that takes too long, since upstream's tests replace upstream's clock only; end its exporters."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"{item.name} takes more than {_TIMEOUT_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        while _exporters:  # what is retried in the background would reach the mock of the next test
            _exporters.pop().shutdown(0)


def _download() -> Path:
    """Return the folder of the release's source; download it if it is missing."""
    if not _FOLDER.is_dir():
        _FOLDER.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        command += ["--dest", str(_FOLDER.parent), f"{_PACKAGE}=={_VERSION}"]
        subprocess.run(command, check=True, capture_output=True)
        with tarfile.open(_FOLDER.with_name(f"{_FOLDER.name}.tar.gz")) as archive:
            archive.extractall(_FOLDER.parent, filter="data")
    return _FOLDER


def run_upstream_tests(*, with_own_class: bool) -> dict[str, str]:
    """Run upstream's tests of its span exporter; return the outcome (`PASSED`, `FAILED`) of each by its name.

    `with_own_class` leaves upstream's class in its place.
    """
    python = environment("upstream-tests", read_lock("upstream-tests"), editable=ROOT)
    command = [str(python), "-m", "pytest", "tests/test_proto_span_exporter.py", "-p", "no:cacheprovider", "-rA"]
    command += [] if with_own_class else ["-p", "support.upstream_tests"]
    result = subprocess.run(
        command,
        cwd=_download(),
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes: dict[str, str] = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|SUBFAILED).* \S+::(\w+)", result.stdout, re.MULTILINE):
        # A test with a failed part counts as failed; pytest also lists it as passed.
        outcomes[name] = "PASSED" if outcome == outcomes.get(name, "PASSED") == "PASSED" else "FAILED"
    return outcomes
