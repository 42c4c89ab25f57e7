"""Attachments: uploaded before their spans, kept in an outage, never uploaded if hidden."""

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
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import create_attachment
from support.environments import MLFLOW_VERSIONS, ROOT, mlflow_python
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import make_traces, wait_until

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
NOISE = random.Random(7).randbytes(450_000)
# Viewers ignore bytes after the end of a picture. LARGE has more than 524,288 characters of base64.
LARGE, SMALL, WAV = PNG + NOISE, PNG + NOISE[:20_000], b"RIFF....WAVE" + NOISE[:20_000]
EXPERIMENT = "/api/2.0/mlflow/experiments/get"


def parse_version(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_request(*pictures: bytes) -> str:
    """Make a request of OpenAI's API."""
    urls = [f"data:image/png;base64,{text_of(picture)}" for picture in pictures]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    parts = [{"type": "text", "text": "What is this?"}, *content]
    return json.dumps({"messages": [{"role": "user", "content": parts}], "model": "m"})


def call(*pictures: bytes) -> Mapping[str, Any]:
    return {"openinference.span.kind": "LLM", "input.value": make_request(*pictures), "output.value": "A dot."}


def make_picture_spans(*pictures: bytes) -> list[ReadableSpan]:
    return make_traces(1, attributes=lambda *_: call(*pictures))


class FakeMLflow:
    """A scripted server that answers like MLflow, and records the order of the requests."""

    def __init__(self, server: ScriptedServer, spans: list[ReadableSpan], *pictures: bytes) -> None:
        self.server, self.url = server, server.url
        self.files: dict[str, bytes] = {}
        self.upload_answer = Answer()
        self.order: list[str] = []
        server.answer_with("/version", lambda _: Answer(body=b"3.17.2"))
        record = json.dumps({"experiment": {"experiment_id": "7", "artifact_location": "mlflow-artifacts:/7"}})
        found_answer = Answer(headers={"Content-Type": "application/json"}, body=record.encode())
        server.answer_with(EXPERIMENT, lambda _: found_answer)
        server.answer_with("/v1/traces", self._spans)
        self.refs = []
        for span in spans:
            assert span.context is not None
            for picture in pictures:
                attachment = create_attachment(span.context.trace_id, "image/png", picture)
                self.refs.append(attachment.ref)
                folder = f"/7/traces/tr-{span.context.trace_id:032x}/artifacts/attachments/{attachment.id}"
                server.answer_with(f"/api/2.0/mlflow-artifacts/artifacts{folder}", self._file)

    def _file(self, request: RecordedRequest) -> Answer:
        self.order.append(request.method)
        if self.upload_answer.status == 200:
            self.files[request.path.rpartition("/")[2]] = request.body
        return self.upload_answer

    def _spans(self, request: RecordedRequest) -> Answer:
        self.order.append("spans")
        self.sent = request.content.decode(errors="replace")
        return Answer()


def exporter_to(server: ScriptedServer, **more: Any) -> MLflowSpanExporter:
    return MLflowSpanExporter(tracking_uri=server.url, experiment_id=7, attachments=True, **more)


def test_upload_precedes_the_spans_with_references(scripted_server: ScriptedServer) -> None:
    spans = make_picture_spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, spans, LARGE, SMALL)
    exporter = exporter_to(scripted_server, credentials="secret", workspace="team-a")
    assert exporter.export(spans) is SpanExportResult.SUCCESS
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


def test_export_without_attachments_setting_uploads_nothing(scripted_server: ScriptedServer) -> None:
    spans = make_picture_spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, spans, LARGE, SMALL)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7)
    exporter.export(spans)
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
    ids=lambda answer: str(answer.status),
)
def test_rejected_uploads_deliver_spans_with_inline_content(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    spans = make_picture_spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, spans, LARGE, SMALL)
    fake.upload_answer = answer
    exporter = exporter_to(scripted_server)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert text_of(SMALL) in fake.sent
    assert "[image/png, 450.1 kB, not kept]" in fake.sent
    assert "mlflow-attachment" not in fake.sent
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"name type and size of others: {answer.status}" in caplog.text
    assert "[MLO-516]" in caplog.text
    assert exporter.stats().attachments_failed == 2
    assert not [request for request in scripted_server.requests if request.path == "/login"]


def test_spooled_attachments_are_uploaded_by_the_next_run(tmp_path: Path) -> None:
    spans = make_picture_spans(LARGE)
    with ScriptedServer(listening=False) as server:
        fake = FakeMLflow(server, spans, LARGE)
        more = {"spool": True, "spool_dir": tmp_path, "timeout": 10.0}
        exporter = exporter_to(server, **more)
        assert exporter.export(spans) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert exporter.stats().spooled == 1
        server.listen()
        exporter = exporter_to(server, **more)
        wait_until(lambda: exporter.stats().delivered == 1)
        exporter.shutdown()
    assert (fake.order, list(fake.files.values())) == (["PUT", "spans"], [LARGE])
    assert fake.refs[0] in fake.sent


def test_attachments_in_memory_are_uploaded_after_an_outage(scripted_server: ScriptedServer) -> None:
    spans = make_picture_spans(LARGE)
    fake = FakeMLflow(scripted_server, spans, LARGE)
    scripted_server.answer_with(EXPERIMENT, lambda _: Answer(503))
    exporter = exporter_to(scripted_server, timeout=3)
    exporter.export(spans)
    assert fake.order == []
    record = json.dumps({"experiment": {"artifact_location": "mlflow-artifacts:/7"}}).encode()
    scripted_server.answer_with(EXPERIMENT, lambda _: Answer(body=record))
    assert exporter.force_flush()
    exporter.shutdown()
    assert (fake.order, exporter.stats().delivered, exporter.stats().attachments_uploaded) == (["PUT", "spans"], 1, 1)


def hide(text: str) -> str:
    return text if len(text) < 1000 else "[hidden]"


@pytest.mark.parametrize(
    ("variable", "mask"),
    [("OPENINFERENCE_HIDE_INPUT_IMAGES", None), ("OPENINFERENCE_HIDE_INPUTS", None), (None, hide)],
)
def test_hidden_or_masked_content_is_not_uploaded(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str | None, mask: Any
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "true")
    spans = make_picture_spans(LARGE, SMALL)
    fake = FakeMLflow(scripted_server, spans, LARGE, SMALL)
    exporter = exporter_to(scripted_server, mask=mask)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]
    assert "base64" not in fake.sent


def test_spans_without_media_send_no_other_request(scripted_server: ScriptedServer) -> None:
    exporter = exporter_to(scripted_server)
    exporter.export(make_spans("plain"))
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]


def test_journal_holds_the_content_of_attachments(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    """Each span is on disk whole, before anything is taken out of it."""
    spans = make_picture_spans(LARGE)
    fake = FakeMLflow(scripted_server, spans, LARGE)
    more = {"spool": True, "spool_dir": tmp_path, "durability": "every-span"}
    exporter = exporter_to(scripted_server, **more)
    pipeline = exporter._pipeline
    assert pipeline is not None
    assert pipeline.span_recorder is not None
    pipeline.span_recorder(spans[0])
    (journal,) = tmp_path.rglob("journal/*")
    assert text_of(LARGE)[:1000] in journal.read_text(errors="replace")
    exporter.export(spans)
    exporter.shutdown()
    assert fake.order == ["PUT", "spans"]


# Against real servers


@pytest.fixture(autouse=True)
def shut_down_after_test() -> Iterator[None]:
    yield
    shutdown()


def download(server: MLflowServer, trace_id: str, ref: str, workspace: str | None = None) -> bytes:
    """Download the content of a reference, as the console does."""
    identity = ref.removeprefix("mlflow-attachment://").partition("?")[0]
    url = f"{server.uri}/ajax-api/2.0/mlflow/get-trace-artifact?request_id={trace_id}&path={identity}"
    headers = {"x-mlflow-workspace": workspace} if workspace else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return bytes(answer.read())


def find_references(value: Any) -> list[str]:
    """Find all references in a trace of MLflow's REST API."""
    if isinstance(value, str):
        return [value] if value.startswith("mlflow-attachment://") else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [ref for item in items for ref in find_references(item)]


def test_mlflow_returns_uploaded_content(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = configure(
        tracking_uri=mlflow_server.uri, experiment="attachments", attachments=True, auto_instrument=False
    )
    audio = {"type": "input_audio", "input_audio": {"data": text_of(WAV), "format": "wav"}}
    spoken = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi"}]}])
    tracer = trace.get_tracer("tests")
    with tracer.start_as_current_span("agent", attributes={"openinference.span.kind": "AGENT"}) as root:
        tracer.start_span("picture", attributes=call(LARGE)).end()
        audio_call = {**call(), "input.value": json.dumps({"messages": [{"role": "user", "content": [audio]}]})}
        tracer.start_span("sound", attributes=audio_call).end()
        tracer.start_span("words", attributes={"gen_ai.operation.name": "chat", "gen_ai.input.messages": spoken}).end()
    assert telemetry.flush()
    assert telemetry.stats().attachments_uploaded == 2
    trace_id = f"tr-{root.get_span_context().trace_id:032x}"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    mlflow.set_tracking_uri(mlflow_server.uri)
    try:
        stored = mlflow.get_trace(trace_id)
        assert stored is not None
        (picture,) = (span for span in stored.data.spans if span.name == "picture")
        (sound,) = (span for span in stored.data.spans if span.name == "sound")
        image = GetSpanImageTool().invoke(stored, picture.span_id)
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    # First as a judge reads it, then as the console does.
    assert isinstance(image, SpanImageResult)
    assert image.data_url == f"data:image/png;base64,{text_of(LARGE)}"
    part = picture.inputs["messages"][0]["content"][1]
    assert download(mlflow_server, trace_id, part["image_url"]["url"]) == LARGE
    audio_part = sound.inputs["messages"][0]["content"][0]
    assert audio_part["input_audio"]["format"] == "wav"
    assert download(mlflow_server, trace_id, audio_part["input_audio"]["data"]) == WAV


def picture(width: int, height: int) -> bytes:
    """Make a valid PNG that is not small."""
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
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\x10" * 8000 * seconds)
    return buffer.getvalue()


@pytest.mark.matrix
@pytest.mark.needs("chromium")
def test_console_shows_media_run_source_and_metadata(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """Images, audio, files; source, run name and metadata."""
    number = mlflow_server.create_experiment("media")
    body = {"experiment_id": number, "run_name": "nightly"}
    run = mlflow_server.call_rest("POST", "/api/2.0/mlflow/runs/create", body)["run"]["info"]["run_id"]
    image, paper = picture(300, 200), b"%PDF-1.4\n" + b"%" * 20_000 + b"\ntrailer<</Root 1 0 R>>\n%%EOF"
    pdf = f"data:application/pdf;base64,{text_of(paper)}"
    audio = {"type": "input_audio", "input_audio": {"data": text_of(sound(2)), "format": "wav"}}
    chat = json.loads(make_request(image))
    chat["messages"][0]["content"].append(audio)
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
    spans = make_traces(1, children=3, attributes=lambda _, number: kinds[number])
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert exporter.stats().attachments_uploaded == 3
    assert spans[0].context is not None
    trace_id, out = f"tr-{spans[0].context.trace_id:032x}", tmp_path / "views.json"
    expected = {"child 0.1": [[300], [2], 0], "render": [[300], [], 1], "child 0.3": [[], [], 1]}
    arguments = [f"{name}={json.dumps(media, separators=(',', ':'))}" for name, media in expected.items()]
    command = [sys.executable, "-m", "support.media_console", mlflow_server.uri, number, trace_id, str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert completed.returncode == 0, completed.stderr
    views = json.loads(out.read_text())
    assert views["spans"] == expected
    (row,) = views["rows"]
    assert (row["Run name"], row["Metadata"]) == ("nightly", "release: 2.3.1")
    assert row["Source"] not in ("", "-")


def test_attachments_are_stored_in_their_workspace(workspace_server: MLflowServer) -> None:
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
        (ref,) = set(find_references(workspace_server.trace(trace_id, workspace)))
        assert download(workspace_server, trace_id, ref, workspace) == SMALL
    with pytest.raises(urllib.error.HTTPError):
        download(workspace_server, ids["team-a"], ref, "team-b")


VERSIONS: list[object] = [*sorted(MLFLOW_VERSIONS, key=parse_version)]


@pytest.mark.matrix
@pytest.mark.parametrize("version", VERSIONS)
def test_mlflow_before_3_11_gets_inline_content(version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    is_supported = parse_version(version) >= (3, 11)
    server = MLflowServer.start(tmp_path, python=mlflow_python(version))
    try:
        number = server.create_experiment("attachments")
        exporter = MLflowSpanExporter(tracking_uri=server.uri, experiment_id=number, attachments=True)
        spans = make_picture_spans(LARGE, SMALL)
        assert exporter.export(spans) is SpanExportResult.SUCCESS
        exporter.shutdown()
        stats = exporter.stats()
        assert (stats.delivered, stats.attachments_uploaded, stats.attachments_failed) == (
            (1, 2, 0) if is_supported else (1, 0, 2)
        )
        assert ("attachments need MLflow 3.11 or newer" in caplog.text) is not is_supported
        assert spans[0].context is not None
        trace_id = f"tr-{spans[0].context.trace_id:032x}"
        stored = server.trace(trace_id)
        assert stored is not None
        if is_supported:
            contents = {download(server, trace_id, ref) for ref in find_references(stored)}
            assert contents == {LARGE, SMALL}
        elif "spans" in stored:
            assert text_of(SMALL)[:100] in json.dumps(stored["spans"])
            assert "[image/png, 450.1 kB, not kept]" in json.dumps(stored["spans"])
    finally:
        server.stop()
