"""The entry point's exporter: never raises when it is made."""

import json

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlflow_otlp_exporter import Stats
from mlflow_otlp_exporter._zero_code import ZeroCodeSpanExporter
from support.scripted_server import Answer, ScriptedServer
from support.spans import finished


@pytest.mark.parametrize("arguments", [{"timeout": "soon"}, {"tracking_uri": "databricks"}, {"nonsense": 1}])
def test_wrong_setting_is_logged_and_leaves_it_off(
    arguments: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = ZeroCodeSpanExporter(**arguments)
    assert next(iter(arguments)) in caplog.text
    assert caplog.records[0].levelname == "ERROR"
    assert exporter.export(finished("a")) is SpanExportResult.FAILURE
    assert exporter.stats() == Stats()
    assert exporter.trace_url(1) is None
    assert exporter.force_flush()
    exporter.shutdown()


def test_arguments_as_a_configuration_file_gives_them(scripted_server: ScriptedServer) -> None:
    headers = [{"name": "x-a", "value": "1"}]
    arguments = {"experiment_id": "77", "timeout": 5, "compression": "gzip", "headers": headers}
    exporter = ZeroCodeSpanExporter(endpoint=scripted_server.traces_url, **arguments)
    assert exporter.export(finished("a" * 2000)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    sent = scripted_server.requests[0].headers
    assert (sent["x-a"], sent["content-encoding"], sent["x-mlflow-experiment-id"]) == ("1", "gzip", "77")


def test_creates_the_experiment_as_configure_does(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, kind = "/api/2.0/mlflow/experiments", {"Content-Type": "application/json"}
    missing = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST"}).encode()
    scripted_server.answer(Answer(404, headers=kind, body=missing), path=f"{api}/get-by-name")
    scripted_server.answer(Answer(200, headers=kind, body=b'{"experiment_id":"5"}'), path=f"{api}/create")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    exporter = ZeroCodeSpanExporter()
    assert isinstance(exporter, SpanExporter)
    assert exporter.export(finished("a")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert scripted_server.requests[-1].headers["x-mlflow-experiment-id"] == "5"
