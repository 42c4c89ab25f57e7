"""Attachments from the app to MLflow: uploaded before their spans, safe in an outage, never what is hidden."""

import base64
import io
import json
import logging
import os
import random
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import wave
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.genai.judges.tools.get_span_image import GetSpanImageTool, SpanImageResult
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter, configure, shutdown, trace_context
from mlflow_otlp_exporter._internal.model.attachment import create_attachment
from support.environments import MLFLOW_VERSIONS, ROOT, mlflow_python
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import make_traces, wait_until

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
NOISE = random.Random(7).randbytes(450_000)
# Viewers do not mind what follows a picture's end; more than 524,288 characters of base64.
LARGE, SMALL, WAV = PNG + NOISE, PNG + NOISE[:20_000], b"RIFF....WAVE" + NOISE[:20_000]
EXPERIMENT = "/api/2.0/mlflow/experiments/get"


def parsed(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asked(*pictures: bytes) -> str:
    """A request to a model, as OpenAI has it."""
    urls = [f"data:image/png;base64,{text_of(each)}" for each in pictures]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    said = [{"type": "text", "text": "What is this?"}, *content]
    return json.dumps({"messages": [{"role": "user", "content": said}], "model": "m"})


def call(*pictures: bytes) -> Mapping[str, Any]:
    return {"openinference.span.kind": "LLM", "input.value": asked(*pictures), "output.value": "A dot."}


def spans(*pictures: bytes) -> list[ReadableSpan]:
    return make_traces(1, attributes=lambda *_: call(*pictures))


class FakeMLflow:
    """A scripted server that answers like MLflow, and tells what came in which order."""

    def __init__(self, server: ScriptedServer, found: list[ReadableSpan], *pictures: bytes) -> None:
        self.server, self.url = server, server.url
        self.files: dict[str, bytes] = {}
        self.takes = Answer()
        self.order: list[str] = []
        server.answer_with("/version", lambda _: Answer(body=b"3.17.2"))
        record = json.dumps({"experiment": {"experiment_id": "7", "artifact_location": "mlflow-artifacts:/7"}})
        there = Answer(headers={"Content-Type": "application/json"}, body=record.encode())
        server.answer_with(EXPERIMENT, lambda _: there)
        server.answer_with("/v1/traces", self._spans)
        self.refs = []
        for span in found:
            assert span.context is not None
            for each in pictures:
                made = create_attachment(span.context.trace_id, "image/png", each)
                self.refs.append(made.ref)
                folder = f"/7/traces/tr-{span.context.trace_id:032x}/artifacts/attachments/{made.id}"
                server.answer_with(f"/api/2.0/mlflow-artifacts/artifacts{folder}", self._file)

    def _file(self, request: RecordedRequest) -> Answer:
        self.order.append(request.method)
        if self.takes.status == 200:
            self.files[request.path.rpartition("/")[2]] = request.body
        return self.takes

    def _spans(self, request: RecordedRequest) -> Answer:
        self.order.append("spans")
        self.sent = request.content.decode(errors="replace")
        return Answer()


def exporter_to(server: ScriptedServer, **more: Any) -> MLflowSpanExporter:
    return MLflowSpanExporter(tracking_uri=server.url, experiment_id=7, attachments=True, **more)


def test_pictures_are_uploaded_before_the_spans_that_refer_to_them(scripted_server: ScriptedServer) -> None:
    found = spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, found, LARGE, SMALL)
    exporter = exporter_to(scripted_server, credentials="secret", workspace="team-a")
    assert exporter.export(found) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert fake.order == ["PUT", "PUT", "spans"]
    assert list(fake.files.values()) == [LARGE, SMALL]
    assert all(ref in fake.sent for ref in fake.refs)
    assert "base64," not in fake.sent
    stats = exporter.stats()
    assert (stats.delivered, stats.attachments_uploaded, stats.attachments_failed) == (1, 2, 0)
    for request in scripted_server.requests:
        if request.path != "/version":
            assert request.headers["authorization"] == "Bearer secret"
            assert request.headers["x-mlflow-workspace"] == "team-a"


def test_without_the_setting_all_is_as_ever(scripted_server: ScriptedServer) -> None:
    found = spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, found, LARGE, SMALL)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7)
    exporter.export(found)
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]
    assert text_of(SMALL) in fake.sent
    assert "[image/png, 450.1 kB, not kept]" in fake.sent


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, body=b'{"error":{"code":"PERMISSION_DENIED","message":"Permission denied"}}'),
        Answer(302, headers={"Location": "/login"}),
        Answer(413),
    ],
    ids=lambda each: str(each.status),
)
def test_refused_uploads_cost_no_span(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    found = spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, found, LARGE, SMALL)
    fake.takes = answer
    exporter = exporter_to(scripted_server)
    assert exporter.export(found) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert text_of(SMALL) in fake.sent
    assert "[image/png, 450.1 kB, not kept]" in fake.sent
    assert "mlflow-attachment" not in fake.sent
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"name type and size where not: {answer.status}" in caplog.text
    assert "[MLO-516]" in caplog.text
    assert exporter.stats().attachments_failed == 2
    assert not [request for request in scripted_server.requests if request.path == "/login"]


def test_what_waits_on_disk_is_uploaded_by_the_next_run(tmp_path: Path) -> None:
    found = spans(LARGE)
    with ScriptedServer(listening=False) as server:
        fake = FakeMLflow(server, found, LARGE)
        more = {"spool": True, "spool_dir": tmp_path, "timeout": 10.0}
        exporter = exporter_to(server, **more)
        assert exporter.export(found) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert exporter.stats().spooled == 1
        server.listen()
        exporter = exporter_to(server, **more)
        wait_until(lambda: exporter.stats().delivered == 1)
        exporter.shutdown()
    assert (fake.order, list(fake.files.values())) == (["PUT", "spans"], [LARGE])
    assert fake.refs[0] in fake.sent


def test_outage_is_waited_for_in_memory_too(scripted_server: ScriptedServer) -> None:
    found = spans(LARGE)
    fake = FakeMLflow(scripted_server, found, LARGE)
    scripted_server.answer_with(EXPERIMENT, lambda _: Answer(503))
    exporter = exporter_to(scripted_server, timeout=3)
    exporter.export(found)
    assert fake.order == []
    record = json.dumps({"experiment": {"artifact_location": "mlflow-artifacts:/7"}}).encode()
    scripted_server.answer_with(EXPERIMENT, lambda _: Answer(body=record))
    assert exporter.force_flush()
    exporter.shutdown()
    assert (fake.order, exporter.stats().delivered, exporter.stats().attachments_uploaded) == (["PUT", "spans"], 1, 1)


def hidden(text: str) -> str:
    return text if len(text) < 1000 else "[hidden]"


@pytest.mark.parametrize(
    ("variable", "mask"),
    [("OPENINFERENCE_HIDE_INPUT_IMAGES", None), ("OPENINFERENCE_HIDE_INPUTS", None), (None, hidden)],
)
def test_what_is_hidden_or_masked_is_never_uploaded(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str | None, mask: Any
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "true")
    found = spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, found, LARGE, SMALL)
    exporter = exporter_to(scripted_server, mask=mask)
    assert exporter.export(found) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]
    assert "base64" not in fake.sent


def test_spans_without_media_do_not_ask(scripted_server: ScriptedServer) -> None:
    exporter = exporter_to(scripted_server)
    exporter.export(make_spans("plain"))
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]


def test_journal_of_a_killed_process_has_the_content(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    """Each span is on disk whole, before anything is taken out of it."""
    found = spans(LARGE)
    fake = FakeMLflow(scripted_server, found, LARGE)
    more = {"spool": True, "spool_dir": tmp_path, "durability": "every-span"}
    exporter = exporter_to(scripted_server, **more)
    pipeline = exporter._pipeline
    assert pipeline is not None
    assert pipeline.span_recorder is not None
    pipeline.span_recorder(found[0])
    (journal,) = tmp_path.rglob("journal/*")
    assert text_of(LARGE)[:1000] in journal.read_text(errors="replace")
    exporter.export(found)
    exporter.shutdown()
    assert fake.order == ["PUT", "spans"]


# Against real servers


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    shutdown()


def downloaded(server: MLflowServer, trace_id: str, ref: str, workspace: str | None = None) -> bytes:
    """What the console is given for a reference."""
    identity = ref.removeprefix("mlflow-attachment://").partition("?")[0]
    url = f"{server.uri}/ajax-api/2.0/mlflow/get-trace-artifact?request_id={trace_id}&path={identity}"
    headers = {"x-mlflow-workspace": workspace} if workspace else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return bytes(answer.read())


def references(found: Any) -> list[str]:
    """References in a trace as MLflow gives it, wherever they stand."""
    if isinstance(found, str):
        return [found] if found.startswith("mlflow-attachment://") else []
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return [ref for each in inner for ref in references(each)]


def test_mlflow_shows_what_was_uploaded(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = configure(
        tracking_uri=mlflow_server.uri, experiment="attachments", attachments=True, auto_instrument=False
    )
    audio = {"type": "input_audio", "input_audio": {"data": text_of(WAV), "format": "wav"}}
    spoken = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi"}]}])
    tracer = trace.get_tracer("tests")
    with tracer.start_as_current_span("agent", attributes={"openinference.span.kind": "AGENT"}) as root:
        tracer.start_span("picture", attributes=call(LARGE)).end()
        heard = {**call(), "input.value": json.dumps({"messages": [{"role": "user", "content": [audio]}]})}
        tracer.start_span("sound", attributes=heard).end()
        tracer.start_span("words", attributes={"gen_ai.operation.name": "chat", "gen_ai.input.messages": spoken}).end()
    assert telemetry.flush()
    assert telemetry.stats().attachments_uploaded == 2
    trace_id = f"tr-{root.get_span_context().trace_id:032x}"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    mlflow.set_tracking_uri(mlflow_server.uri)
    try:
        shown = mlflow.get_trace(trace_id)
        assert shown is not None
        (picture,) = (each for each in shown.data.spans if each.name == "picture")
        (sound,) = (each for each in shown.data.spans if each.name == "sound")
        seen = GetSpanImageTool().invoke(shown, picture.span_id)
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    # As a judge sees it, and as the console does.
    assert isinstance(seen, SpanImageResult)
    assert seen.data_url == f"data:image/png;base64,{text_of(LARGE)}"
    part = picture.inputs["messages"][0]["content"][1]
    assert downloaded(mlflow_server, trace_id, part["image_url"]["url"]) == LARGE
    heard_part = sound.inputs["messages"][0]["content"][0]
    assert heard_part["input_audio"]["format"] == "wav"
    assert downloaded(mlflow_server, trace_id, heard_part["input_audio"]["data"]) == WAV


def picture(width: int, height: int) -> bytes:
    """A PNG that a browser draws, and that is not small."""
    noise = random.Random(8).randbytes(3 * width * height)
    rows = b"".join(b"\0" + noise[3 * width * row : 3 * width * (row + 1)] for row in range(height))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def sound(seconds: int) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\x10" * 8000 * seconds)
    return made.getvalue()


@pytest.mark.matrix
@pytest.mark.needs("chromium")
def test_console_shows_what_otlp_cannot_carry(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """Pictures, sound, files; source, run name and metadata."""
    number = mlflow_server.create_experiment("media")
    body = {"experiment_id": number, "run_name": "nightly"}
    run = mlflow_server.call_rest("POST", "/api/2.0/mlflow/runs/create", body)["run"]["info"]["run_id"]
    image, paper = picture(300, 200), b"%PDF-1.4\n" + b"%" * 20_000 + b"\ntrailer<</Root 1 0 R>>\n%%EOF"
    pdf = f"data:application/pdf;base64,{text_of(paper)}"
    heard = {"type": "input_audio", "input_audio": {"data": text_of(sound(2)), "format": "wav"}}
    chat = json.loads(asked(image))
    chat["messages"][0]["content"].append(heard)
    files = [{"type": "file", "file": {"filename": "a.pdf", "file_data": pdf}}]
    kinds: list[Mapping[str, Any]] = [
        {"openinference.span.kind": "AGENT", "metadata": '{"release": "2.3.1"}'},
        {**call(), "input.value": json.dumps(chat)},
        {
            "openinference.span.kind": "TOOL",
            "tool.name": "render",
            "input.value": "{}",
            "output.value": json.dumps({"file": pdf, "chart": f"data:image/png;base64,{text_of(image)}"}),
        },
        {**call(), "input.value": json.dumps({"messages": [{"role": "user", "content": files}]})},
    ]
    exporter = MLflowSpanExporter(
        tracking_uri=mlflow_server.uri, experiment_id=number, run_id=run, attachments=True, trace_info=True
    )
    found = make_traces(1, children=3, attributes=lambda _, number: kinds[number])
    assert exporter.export(found) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert exporter.stats().attachments_uploaded == 3
    assert found[0].context is not None
    trace_id, out = f"tr-{found[0].context.trace_id:032x}", tmp_path / "seen.json"
    wanted = {"child 0.1": [[300], [2], 0], "render": [[300], [], 1], "child 0.3": [[], [], 1]}
    said = [f"{name}={json.dumps(each, separators=(',', ':'))}" for name, each in wanted.items()]
    command = [sys.executable, "-m", "support.media_console", mlflow_server.uri, number, trace_id, str(out), *said]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(out.read_text())
    assert seen["spans"] == wanted
    (row,) = seen["rows"]
    assert (row["Run name"], row["Metadata"]) == ("nightly", "release: 2.3.1")
    assert row["Source"] not in ("", "-")


def test_each_workspace_has_its_own(workspace_server: MLflowServer) -> None:
    telemetry = configure(
        tracking_uri=workspace_server.uri, experiment="attachments", attachments=True, auto_instrument=False
    )
    ids: dict[str | None, str] = {}
    for workspace in ("team-a", "team-b", None):
        with (
            trace_context(workspace=workspace),
            trace.get_tracer("tests").start_as_current_span("picture", attributes=call(SMALL)) as span,
        ):
            ids[workspace] = f"tr-{span.get_span_context().trace_id:032x}"
    assert telemetry.flush()
    assert (telemetry.stats().attachments_uploaded, telemetry.stats().attachments_failed) == (3, 0)
    for workspace, trace_id in ids.items():
        found = workspace_server.trace(trace_id, workspace)
        (ref,) = set(_texts(found))
        assert downloaded(workspace_server, trace_id, ref, workspace) == SMALL
    with pytest.raises(urllib.error.HTTPError):
        downloaded(workspace_server, ids["team-a"], ref, "team-b")


def _texts(found: Any) -> list[str]:
    """References in a trace as REST has it, also inside of JSON text."""
    return references(json.loads(json.dumps(found)))


VERSIONS: list[object] = [*sorted(MLFLOW_VERSIONS, key=parsed)]


@pytest.mark.matrix
@pytest.mark.parametrize("version", VERSIONS)
def test_versions_that_know_none_do_without(version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    knows = parsed(version) >= (3, 11)
    server = MLflowServer.start(tmp_path, python=mlflow_python(version))
    try:
        number = server.create_experiment("attachments")
        exporter = MLflowSpanExporter(tracking_uri=server.uri, experiment_id=number, attachments=True)
        found = spans(LARGE, SMALL)
        assert exporter.export(found) is SpanExportResult.SUCCESS
        exporter.shutdown()
        stats = exporter.stats()
        assert (stats.delivered, stats.attachments_uploaded, stats.attachments_failed) == (
            (1, 2, 0) if knows else (1, 0, 2)
        )
        assert ("attachments need MLflow 3.11 or newer" in caplog.text) is not knows
        assert found[0].context is not None
        trace_id = f"tr-{found[0].context.trace_id:032x}"
        stored = server.trace(trace_id)
        assert stored is not None
        if knows:
            contents = {downloaded(server, trace_id, ref) for ref in _texts(stored)}
            assert contents == {LARGE, SMALL}
        elif "spans" in stored:
            assert text_of(SMALL)[:100] in json.dumps(stored["spans"])
            assert "[image/png, 450.1 kB, not kept]" in json.dumps(stored["spans"])
    finally:
        server.stop()
