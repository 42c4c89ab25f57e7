"""Credential providers of upstream: entry points of a small installed distribution."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter
from mlflow_otlp_exporter._internal.config.resolver import resolve
from support.markers import SECRET
from support.scripted_server import Answer, ScriptedServer
from support.spans import make_spans

GENERAL = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER"
TRACES = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER"
NAME = "provider_for_tests"
MODULE = f"""
import requests

class Session(requests.Session):
    closed = False

    def request(self, method, url, data=None, headers=None, **others):
        return super().request(method, url, data=data, headers={{**headers, "authorization": "Signed"}}, **others)

    def close(self):
        Session.closed = True
        super().close()

def other():
    session = requests.Session()
    session.headers["x-session"] = "other"
    return session

def nothing():
    return None

def fail():
    raise RuntimeError("{SECRET}")
"""
ENTRY_POINTS = f"""
[opentelemetry_otlp_credential_provider]
signing = {NAME}:Session
other = {NAME}:other
nothing = {NAME}:nothing
failing = {NAME}:fail
missing = {NAME}_that_is_not_there:Session
"""


@pytest.fixture(autouse=True)
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    information = tmp_path / f"{NAME}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop(NAME, None)


def test_export_with_provider_uses_its_session(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", scripted_server.url)
    monkeypatch.setenv(TRACES, "signing")
    exporter = MLflowSpanExporter(experiment_id=1)
    assert exporter.export(make_spans("root")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    headers = scripted_server.requests[0].headers
    assert (headers["authorization"], headers["x-mlflow-experiment-id"]) == ("Signed", "1")
    assert importlib.import_module(NAME).Session.closed


def test_export_with_both_variables_prefers_general_one_like_upstream(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACES, "signing")
    monkeypatch.setenv(GENERAL, "other")
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1)
    exporter.export(make_spans("root"))
    exporter.shutdown()
    assert scripted_server.requests[0].headers["x-session"] == "other"


def test_export_with_user_session_ignores_provider(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GENERAL, "missing")
    exporter = MLflowSpanExporter(scripted_server.traces_url, session=requests.Session(), experiment_id=1)
    exporter.export(make_spans("root"))
    exporter.shutdown()
    assert "authorization" not in scripted_server.requests[0].headers


def test_export_with_mlflow_settings_ignores_provider_of_otlp_settings(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv(GENERAL, "signing")
    exporter = MLflowSpanExporter(experiment_id=1)
    exporter.export(make_spans("root"))
    exporter.shutdown()
    assert "authorization" not in scripted_server.requests[0].headers
    assert resolve({}).traces.ignored_variables == (GENERAL,)


def test_export_with_rejected_session_names_provider(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(GENERAL, "signing")
    scripted_server.answer(Answer(401))
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, timeout=10)
    exporter.export(make_spans("root"))
    exporter.shutdown(100)
    assert f"credentials: session of the credential provider signing (environment variable {GENERAL})" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "unknown",
            "group opentelemetry_otlp_credential_provider (failing, missing, nothing, other, signing)",
        ),
        ("nothing", "which returned a NoneType: expected a function that returns a requests.Session"),
        ("failing", "which raised RuntimeError"),
        ("missing", "which raised ModuleNotFoundError"),
    ],
)
def test_exporter_with_unusable_provider_raises(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GENERAL, name)
    with pytest.raises(ConfigurationError) as caught:
        MLflowSpanExporter("http://127.0.0.1:9/v1/traces")
    assert str(caught.value).startswith(f"environment variable {GENERAL} is '{name}'")
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None
