"""`mlflow-otlp send`: OTLP data from a file, or a test trace, to a real MLflow."""

import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.cli.send import read_file
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import encode_request
from support.markers import PROMPT
from support.mlflow_server import MLflowServer
from support.scripted_server import TRACES_PATH, Answer, ScriptedServer
from support.spans import make_spans

NAMES = ["first", "second", "third"]


def encode_spans() -> bytes:
    encoder = SpanEncoder()
    return encode_request([encoder.encode(span) for span in make_spans(*NAMES)])


def as_json(content: bytes) -> str:
    """Convert to OTLP's JSON, whose ids are hexadecimal."""
    data = TracesData.FromString(content)
    message_json = json_format.MessageToDict(data)
    spans = [span for group in data.resource_spans for scope in group.scope_spans for span in scope.spans]
    json_spans = [
        span for group in message_json["resourceSpans"] for scope in group["scopeSpans"] for span in scope["spans"]
    ]
    for json_span, span in zip(json_spans, spans, strict=True):
        json_span["traceId"], json_span["spanId"] = span.trace_id.hex(), span.span_id.hex()
    return json.dumps(message_json)


@pytest.fixture
def experiment(request: pytest.FixtureRequest, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> str:
    number = mlflow_server.create_experiment(f"sent by {request.node.name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    return number


@pytest.mark.parametrize("file_format", ["pb", "json", "lines"])
def test_send_file_delivers_all_spans(
    file_format: str, experiment: str, mlflow_server: MLflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = encode_spans()
    path = tmp_path / f"traces.{file_format}"
    if file_format == "pb":
        path.write_bytes(content)
    elif file_format == "json":
        path.write_text(json.dumps(json.loads(as_json(content)), indent=2))
    else:  # like the Collector's file exporter
        path.write_text(f"{as_json(encode_spans())}\n{as_json(content)}\n")
    assert main_module.main(["send", str(path)]) == 0
    expected = 6 if file_format == "lines" else 3
    assert f"{expected} of {expected} spans of {expected} traces delivered" in capsys.readouterr().out
    assert len(mlflow_server.search_traces(experiment)) == expected


def test_read_file_of_json_equals_protobuf(tmp_path: Path) -> None:
    content = encode_spans()
    (tmp_path / "pb").write_bytes(content)
    (tmp_path / "json").write_text(as_json(content))
    assert encode_request(read_file(tmp_path / "pb")) == encode_request(read_file(tmp_path / "json"))


def test_send_test_trace_is_stored(
    experiment: str, mlflow_server: MLflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_module.main(["send", "--test"]) == 0
    (trace,) = mlflow_server.search_traces(experiment)
    assert trace["trace_id"] in capsys.readouterr().out
    assert trace["state"] == "OK"
    # The exporter sends the same attributes, which the console shows.
    assert trace["tags"]["mlflow.traceName"] == "mlflow-otlp send --test"
    stored = mlflow_server.trace(trace["trace_id"].removeprefix("tr-"))
    assert stored is not None
    types = [attribute for span in stored["spans"] for attribute in span["attributes"] if "spanType" in str(attribute)]
    assert len(types) == 2


@pytest.mark.parametrize(
    ("variable", "value", "present", "absent"),
    [
        ("MLFLOW_OTLP_ENRICH", "true", "mlflow.spanType", "nothing"),
        ("MLFLOW_OTLP_ENRICH", "false", "openinference.span.kind", "mlflow."),
        ("OPENINFERENCE_HIDE_INPUTS", "true", "It does.", "Does a trace arrive?"),
        ("MLFLOW_OTLP_MAX_REQUEST_SIZE", "1", "mlflow.spanType", "nothing"),
    ],
)
def test_send_test_trace_applies_the_settings(
    scripted_server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    present: str,
    absent: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert main_module.main(["send", "--test", "--tracking-uri", scripted_server.url, "--experiment-id", "1"]) == 0
    spans = [span for request in scripted_server.to(TRACES_PATH) for span in request.spans()]
    assert sorted(span.name for span in spans) == ["a step of it", "mlflow-otlp send --test"]
    for span in spans:
        attributes = str(span.attributes)
        assert present in attributes
        assert absent not in attributes


def test_send_test_trace_to_rejecting_server_fails(
    scripted_server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_server.answer(then=Answer(401))
    assert main_module.main(["send", "--test", "--tracking-uri", scripted_server.url, "--experiment-id", "1"]) == 1
    output = capsys.readouterr()
    assert "[MLO-301]" in output.err
    assert "was delivered" not in output.out


def test_send_test_trace_that_cannot_be_encoded_fails(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError

    monkeypatch.setattr(SpanEncoder, "encode", fail)
    assert main_module.main(["send", "--test", "--tracking-uri", scripted_server.url, "--experiment-id", "1"]) == 1
    output = capsys.readouterr()
    assert "Spans dropped: a span could not be encoded (ValueError) [MLO-701]" in output.err
    assert "was delivered" not in output.out
    assert scripted_server.to(TRACES_PATH) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"[]", b"no traces", b"\x0a\xff\xff", b'{"resourceSpans":[5]}'])
def test_send_file_without_otlp_fails(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traces"
    path.write_bytes(content)
    assert main_module.main(["send", str(path)]) == 2
    assert f"{path}: " in capsys.readouterr().err


def test_read_file_without_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_file(tmp_path / "nowhere")


def test_send_file_to_unavailable_server_fails(
    scripted_server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_server.answer(then=Answer(503))
    path = tmp_path / "traces.pb"
    path.write_bytes(encode_spans())
    arguments = ["send", str(path), "--tracking-uri", scripted_server.url, "--experiment-id", "1"]
    assert main_module.main(arguments) == 1
    output = capsys.readouterr()
    assert "0 of 3 spans of 3 traces delivered" in output.err
    assert "[MLO-501]" in output.err
    assert PROMPT not in output.err


@pytest.mark.parametrize("arguments", [["send"], ["send", "--test", "file.pb"], ["doctor", "--nonsense"]])
def test_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main_module.main(arguments)
    assert ended.value.code == 2
    assert "usage: mlflow-otlp" in capsys.readouterr().err
