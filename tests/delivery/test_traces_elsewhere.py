"""Traces that MLflow has in another experiment (3.18 answers 400) or in another workspace (200, and nothing is stored).

The responses are those of MLflow 3.18.0; tests/matrix/test_distributed_traces.py has the same with real servers.
"""

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import create_attachment
from support.fast_retries import skip_retry_delays
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans, provider
from support.traces import make_traces, wait_until

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
JSON = {"Content-Type": "application/json"}
BATCH_GET_INFOS = "/api/3.0/mlflow/traces/batchGetInfos"
SERVER_INFO = "/api/3.0/mlflow/server-info"
OWN, OTHER = "1", "7"
REFUSALS = (401, 403, 404)
Judge = Callable[[RecordedRequest], Answer | None]


def json_answer(status: int, content: object) -> Answer:
    return Answer(status, headers=JSON, body=json.dumps(content).encode())


def mlflow_error(status: int, code: str, message: str) -> Answer:
    return json_answer(status, {"error_code": code, "message": message})


def trace_name(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"tr-{span.context.trace_id:032x}"


class FakeMLflow:
    """A server that stores spans like MLflow 3.18.

    Attributes:
        traces: The experiment of each trace.
        stored: The names of the stored spans, by experiment.
        posts: The experiment and the number of traces of each request with spans.
        judge: Answers a request instead of the server, unless it returns None.
        lookup: Answers the lookup of a trace instead of the server, unless it returns None.
        has_batch_lookup: False for a server that rejects the lookup of many traces.
    """

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.traces: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.stored: dict[str, list[str]] = {}
        self.posts: list[tuple[str, int]] = []
        self.judge: Judge = lambda _: None
        self.lookup: Judge = lambda _: None
        self.has_batch_lookup = True
        server.answer_with("/version", lambda _: Answer(body=b"3.18.0"))
        server.answer_with(TRACES_PATH, self.receive)
        server.answer_with(BATCH_GET_INFOS, self.look_up_many)
        server.answer_with(SERVER_INFO, lambda _: json_answer(200, {"workspaces_enabled": False}))

    def add_foreign(self, *spans: ReadableSpan, experiment: str = OTHER) -> None:
        for span in spans:
            self.traces[trace_name(span)] = experiment
        self.serve_lookups(*spans)

    def serve_lookups(self, *spans: ReadableSpan) -> None:
        for span in spans:
            self.server.answer_with(f"/api/3.0/mlflow/traces/{trace_name(span)}", self.look_up)

    def receive(self, request: RecordedRequest) -> Answer:
        experiment = request.headers["x-mlflow-experiment-id"]
        names: dict[str, list[str]] = {}
        for span in request.spans():
            names.setdefault(f"tr-{span.trace_id.hex()}", []).append(span.name)
        self.posts.append((experiment, len(names)))
        if (answer := self.judge(request)) is not None:
            return answer
        elsewhere = sorted(name for name in names if self.traces.get(name, experiment) != experiment)
        if elsewhere:
            message = f"Trace with ID '{elsewhere[0]}' already exists in another experiment."
            return mlflow_error(400, "INVALID_PARAMETER_VALUE", message)
        # A trace that another workspace has takes all new traces of its request with it.
        for name in names if self.hidden.isdisjoint(names) else self.traces.keys() & names:
            self.traces[name] = experiment
            self.stored.setdefault(experiment, []).extend(names[name])
        return ACCEPTED

    def look_up(self, request: RecordedRequest) -> Answer:
        name = request.path.rpartition("/")[2]
        if (answer := self.lookup(request)) is not None:
            return answer
        if name not in self.traces:
            return mlflow_error(404, "RESOURCE_DOES_NOT_EXIST", f"Trace with ID '{name}' not found.")
        return json_answer(200, {"trace": {"trace_info": self.info(name)}})

    def look_up_many(self, request: RecordedRequest) -> Answer:
        names = json.loads(request.content)["trace_ids"]
        if not self.has_batch_lookup:
            return mlflow_error(403, "PERMISSION_DENIED", "Permission denied")
        infos = [self.info(name) for name in names if name in self.traces]
        return json_answer(200, {"trace_infos": infos} if infos else {})

    def info(self, name: str) -> dict[str, object]:
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": self.traces[name]}}
        return {"trace_id": name, "trace_location": location}


@pytest.fixture
def mlflow(scripted_server: ScriptedServer) -> FakeMLflow:
    return FakeMLflow(scripted_server)


@pytest.fixture(params=[False, True], ids=["in memory", "spool"])
def exporter(request: pytest.FixtureRequest, mlflow: FakeMLflow, tmp_path: Path) -> MLflowSpanExporter:
    return new_exporter(mlflow, tmp_path if request.param else None)


def new_exporter(mlflow: FakeMLflow, spool: Path | None = None, **settings: object) -> MLflowSpanExporter:
    destination = {"experiment_id": OWN, **settings}
    spool_settings = {"spool": spool is not None, "spool_dir": str(spool) if spool is not None else None}
    return MLflowSpanExporter(timeout=10, tracking_uri=mlflow.server.url, **spool_settings, **destination)  # type: ignore[arg-type]


def export(exporter: MLflowSpanExporter, spans: list[ReadableSpan]) -> None:
    with skip_retry_delays(exporter):
        exporter.export(spans)
        assert exporter.force_flush(20_000) in (True, False)


def counts(exporter: MLflowSpanExporter) -> tuple[int, int]:
    stats = exporter.stats()
    return stats.delivered, stats.dropped


def dead_letters(folder: Path) -> list[Path]:
    return list(folder.rglob("refused/*"))


def test_export_of_trace_of_another_experiment_sends_its_spans_there(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    spans = make_spans("a", "b", "c", "d")
    mlflow.add_foreign(spans[2])
    export(exporter, spans)
    exporter.shutdown()
    assert {name: sorted(names) for name, names in mlflow.stored.items()} == {OWN: ["a", "b", "d"], OTHER: ["c"]}
    assert mlflow.posts == [(OWN, 4), (OWN, 3), (OTHER, 1)]
    assert counts(exporter) == (4, 0)
    assert caplog.text.count("Another service's experiment 7 has traces of this service") == 1
    assert "[MLO-417]" in caplog.text
    assert "MLFLOW_EXPERIMENT_NAME" in caplog.text


def test_export_of_known_trace_of_another_experiment_sends_it_there_at_once(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    spans = make_spans("a", "b")
    mlflow.add_foreign(spans[1])
    for _ in range(3):
        export(exporter, spans)
    exporter.shutdown()
    assert mlflow.posts == [(OWN, 2), *[(OWN, 1), (OTHER, 1)] * 3]
    assert len(mlflow.server.to(f"/api/3.0/mlflow/traces/{trace_name(spans[1])}")) <= 1
    assert caplog.text.count("MLO-417") == 1
    assert counts(exporter) == (6, 0)


@pytest.mark.parametrize("has_batch_lookup", [True, False], ids=["batch", "one by one"])
def test_export_of_many_traces_of_other_experiments_takes_few_requests(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter, has_batch_lookup: bool
) -> None:
    mlflow.has_batch_lookup = has_batch_lookup
    spans = make_spans(*(f"s{number}" for number in range(40)))
    mlflow.serve_lookups(*spans)
    mlflow.add_foreign(*spans[:20])
    mlflow.add_foreign(*spans[20:30], experiment="8")
    export(exporter, spans)
    exporter.shutdown()
    assert {name: len(names) for name, names in mlflow.stored.items()} == {OWN: 10, OTHER: 20, "8": 10}
    assert len(mlflow.posts) <= 5
    assert not has_batch_lookup or len(mlflow.server.requests) <= 8
    assert counts(exporter) == (40, 0)


@pytest.mark.parametrize("status", REFUSALS)
def test_export_of_trace_that_may_not_be_looked_up_drops_its_spans_only(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    spans = make_spans("a", "b", "c")
    mlflow.add_foreign(spans[0])
    mlflow.has_batch_lookup = False
    mlflow.serve_lookups(*spans)
    mlflow.lookup = lambda _: mlflow_error(status, "PERMISSION_DENIED", "no")
    export(exporter, spans)
    exporter.shutdown()
    assert {name: sorted(names) for name, names in mlflow.stored.items()} == {OWN: ["b", "c"]}
    assert counts(exporter) == (2, 1)
    assert (
        f"another experiment has their trace {trace_name(spans[0])}, and cannot be looked up: {status}" in caplog.text
    )
    assert "MLFLOW_EXPERIMENT_NAME" in caplog.text
    assert len(dead_letters(tmp_path)) == any(tmp_path.iterdir())  # one with a spool


@pytest.mark.parametrize("has_batch_lookup", [True, False], ids=["batch", "one by one"])
def test_export_of_many_traces_that_may_not_be_looked_up_asks_once_for_each(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter, has_batch_lookup: bool
) -> None:
    """With basic auth, MLflow 3.18 leaves traces that the user may not read out of the common answer."""
    spans = make_spans(*(f"s{number}" for number in range(20)))
    mlflow.serve_lookups(*spans)
    mlflow.add_foreign(*spans[:10])
    if has_batch_lookup:
        mlflow.server.answer_with(BATCH_GET_INFOS, lambda _: json_answer(200, {}))
    mlflow.has_batch_lookup = has_batch_lookup
    mlflow.lookup = lambda _: mlflow_error(403, "PERMISSION_DENIED", "Permission denied")
    export(exporter, spans)
    exporter.shutdown()
    assert counts(exporter) == (10, 10)
    assert len(mlflow.server.requests) <= 3 * 10 + 3


@pytest.mark.parametrize("status", REFUSALS)
def test_export_of_trace_of_experiment_that_takes_no_spans_drops_them_only(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    spans = make_spans("a", "b", "c")
    mlflow.add_foreign(spans[0])

    def refuse(request: RecordedRequest) -> Answer | None:
        is_other = request.headers["x-mlflow-experiment-id"] == OTHER
        return mlflow_error(status, "PERMISSION_DENIED", "no") if is_other else None

    mlflow.judge = refuse
    export(exporter, spans)
    export(exporter, make_spans("d"))
    exporter.shutdown()
    assert {name: sorted(names) for name, names in mlflow.stored.items()} == {OWN: ["b", "c", "d"]}
    assert counts(exporter) == (3, 1)
    assert f"experiment 7 of another service has their trace, and rejects them: {status}" in caplog.text


def test_export_with_expired_token_keeps_spans_of_another_experiment(
    mlflow: FakeMLflow, caplog: pytest.LogCaptureFixture
) -> None:
    spans, attempts = make_spans("a"), []
    mlflow.add_foreign(spans[0])

    def reject_token_later(request: RecordedRequest) -> Answer | None:
        attempts.append(request)
        return mlflow_error(401, "UNAUTHENTICATED", "expired") if 1 < len(attempts) < 6 else None

    mlflow.judge = reject_token_later
    exporter = new_exporter(mlflow)
    with skip_retry_delays(exporter):
        exporter.export(spans)
        assert exporter.force_flush(20_000)
    exporter.shutdown()
    assert counts(exporter) == (1, 0)
    assert mlflow.stored == {OTHER: ["a"]}


def test_export_with_unavailable_lookup_sends_other_spans_at_once(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter
) -> None:
    spans, lookups = make_spans("a", "b", "c"), []
    mlflow.add_foreign(spans[1])
    mlflow.has_batch_lookup = False
    mlflow.serve_lookups(*spans)

    def fail_at_first(request: RecordedRequest) -> Answer | None:
        lookups.append(request)
        return Answer(503) if len(lookups) < 3 else None

    mlflow.lookup = fail_at_first
    with skip_retry_delays(exporter):
        exporter.export(spans)
        assert exporter.force_flush(20_000)
    exporter.shutdown()
    assert {name: sorted(names) for name, names in mlflow.stored.items()} == {OWN: ["a", "c"], OTHER: ["b"]}
    assert mlflow.posts[1] == (OWN, 2)
    assert counts(exporter) == (3, 0)


def test_export_to_server_that_always_names_the_trace_drops_it(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter
) -> None:
    spans = make_spans("a", "b")
    mlflow.add_foreign(spans[0])
    message = f"Trace with ID '{trace_name(spans[0])}' already exists in another experiment."

    def name_it(request: RecordedRequest) -> Answer | None:
        has_trace = "a" in [span.name for span in request.spans()]
        return mlflow_error(400, "INVALID_PARAMETER_VALUE", message) if has_trace else None

    mlflow.judge = name_it
    export(exporter, spans)
    exporter.shutdown()
    assert counts(exporter) == (1, 1)
    assert len(mlflow.posts) <= 4


def test_export_to_server_that_names_a_trace_of_another_request_drops_nothing_else(
    mlflow: FakeMLflow, exporter: MLflowSpanExporter
) -> None:
    absent = make_spans("absent")[0]
    mlflow.add_foreign(absent)
    message = f"Trace with ID '{trace_name(absent)}' already exists in another experiment."
    mlflow.judge = lambda request: (
        mlflow_error(400, "INVALID_PARAMETER_VALUE", message)
        if "bad" in [span.name for span in request.spans()]
        else None
    )
    export(exporter, make_spans("a", "bad", "b"))
    exporter.shutdown()
    assert counts(exporter) == (2, 1)
    assert len(mlflow.posts) <= 12


def test_export_with_experiment_header_of_user_sends_trace_to_its_experiment(mlflow: FakeMLflow) -> None:
    spans = make_spans("a", "b")
    mlflow.add_foreign(spans[0])
    exporter = new_exporter(mlflow, experiment_id=None, headers={"x-mlflow-experiment-id": "01"})
    export(exporter, spans)
    exporter.shutdown()
    assert mlflow.stored == {OWN: ["b"], OTHER: ["a"]}


def test_export_of_spooled_trace_of_another_experiment_sends_it_there(mlflow: FakeMLflow, tmp_path: Path) -> None:
    spans = make_spans("a", "b")
    mlflow.add_foreign(spans[0])
    mlflow.judge = lambda _: Answer(503)
    first = new_exporter(mlflow, tmp_path)
    first.export(spans)
    first.shutdown()
    assert counts(first) == (0, 0)
    mlflow.judge = lambda _: None
    second = new_exporter(mlflow, tmp_path)
    with skip_retry_delays(second):
        wait_until(lambda: mlflow.stored == {OWN: ["b"], OTHER: ["a"]})  # a flush waits for own spans only
    second.shutdown()
    assert list(tmp_path.rglob("*.spans")) == []


def test_export_of_trace_of_another_experiment_uploads_its_attachments_there(mlflow: FakeMLflow) -> None:
    """They go to the service's own experiment first, because only the answer to the spans names the trace."""
    picture = b"\x89PNG\r\n\x1a\n" + bytes(9000)
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    chat = json.dumps({"messages": [{"role": "user", "content": content}], "model": "m"})
    spans = make_traces(2, attributes=lambda *_: {"openinference.span.kind": "LLM", "input.value": chat})
    mlflow.add_foreign(spans[0])
    uploads: list[str] = []

    def upload(request: RecordedRequest) -> Answer:
        assert request.body == picture
        uploads.append(request.path.removeprefix(f"{ARTIFACTS}/"))
        return Answer()

    def experiment_of(request: RecordedRequest) -> Answer:
        number = request.query.partition("=")[2]
        record = {"experiment_id": number, "artifact_location": f"mlflow-artifacts:/{number}"}
        return json_answer(200, {"experiment": record})

    mlflow.server.answer_with("/api/2.0/mlflow/experiments/get", experiment_of)
    paths: dict[str, str] = {}
    for span in spans:
        assert span.context is not None
        attachment = create_attachment(span.context.trace_id, "image/png", picture)
        for experiment in (OWN, OTHER):
            path = f"{experiment}/traces/{trace_name(span)}/artifacts/attachments/{attachment.id}"
            mlflow.server.answer_with(f"{ARTIFACTS}/{path}", upload)
            paths[f"{span.name} {experiment}"] = path
    exporter = new_exporter(mlflow, attachments=True)
    export(exporter, spans)
    export(exporter, spans)
    exporter.shutdown()
    assert counts(exporter) == (4, 0)
    assert uploads == [paths[name] for name in (f"root 0 {OWN}", f"root 1 {OWN}", f"root 0 {OTHER}")]


# Workspaces


def make_remote_spans(*names: str) -> list[ReadableSpan]:
    """Make ended spans whose parents are spans of another service."""
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        for number, name in enumerate(names, 1):
            parent = NonRecordingSpan(SpanContext(number << 64, 1, is_remote=True, trace_flags=TraceFlags(1)))
            tracer_provider.get_tracer("tests").start_span(name, set_span_in_context(parent)).end()
    return list(memory.get_finished_spans())


@pytest.mark.parametrize("workspace", ["team-b", None])
def test_export_of_trace_of_another_workspace_drops_its_spans_with_reason(
    mlflow: FakeMLflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, workspace: str | None
) -> None:
    mlflow.server.answer_with(SERVER_INFO, lambda _: json_answer(200, {"workspaces_enabled": True}))
    remote, own = make_remote_spans("remote", "hidden"), make_spans("own")
    mlflow.serve_lookups(*remote, *own)
    mlflow.hidden = {trace_name(remote[1])}
    exporter = new_exporter(mlflow, tmp_path, workspace=workspace)
    export(exporter, [*remote, *own])
    assert counts(exporter) == (2, 1)
    assert mlflow.posts == [(OWN, 3), (OWN, 1), (OWN, 1), (OWN, 1)]
    export(exporter, [*remote, *own])
    exporter.shutdown()
    assert counts(exporter) == (4, 2)
    assert {name: sorted(spans) for name, spans in mlflow.stored.items()} == {OWN: ["own", "own", "remote", "remote"]}
    assert "the server accepted them, and has not stored their trace," in caplog.text
    assert "MLFLOW_WORKSPACE" in caplog.text
    assert "[MLO-418]" in caplog.text
    assert len(dead_letters(tmp_path)) == 2


def test_export_of_stored_trace_of_another_service_asks_once(mlflow: FakeMLflow) -> None:
    spans = make_remote_spans("a", "b")
    mlflow.serve_lookups(*spans)
    exporter = new_exporter(mlflow, workspace="team-b")
    for _ in range(3):
        export(exporter, spans)
    exporter.shutdown()
    assert counts(exporter) == (6, 0)
    assert len(mlflow.server.requests) == 4


@pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.PRODUCER])
def test_export_of_trace_whose_callee_sent_first_to_another_workspace_drops_its_spans(
    mlflow: FakeMLflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: SpanKind
) -> None:
    """The caller learns from no parent that its trace is another workspace's: it has a span of a call."""
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        tracer = tracer_provider.get_tracer("tests")
        root = tracer.start_span("caller")
        tracer.start_span("POST /callee", set_span_in_context(root), kind=kind).end()
        root.end()
    spans, own = memory.get_finished_spans(), make_spans("own")
    mlflow.serve_lookups(*spans, *own)
    mlflow.hidden = {trace_name(spans[0])}
    exporter = new_exporter(mlflow, tmp_path, workspace="team-a")
    export(exporter, [*spans, *own])
    exporter.shutdown()
    assert counts(exporter) == (1, 2)
    assert mlflow.stored == {OWN: ["own"]}
    assert "[MLO-418]" in caplog.text
    assert len(dead_letters(tmp_path)) == 1


def test_export_without_call_of_a_service_and_remote_parent_asks_nothing(mlflow: FakeMLflow) -> None:
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        attributes = {"gen_ai.operation.name": "chat"}  # no model continues a trace
        tracer_provider.get_tracer("tests").start_span("chat", kind=SpanKind.CLIENT, attributes=attributes).end()
    exporter = new_exporter(mlflow, workspace="team-b")
    export(exporter, [*make_spans("a"), *memory.get_finished_spans()])
    exporter.shutdown()
    assert counts(exporter) == (2, 0)
    assert len(mlflow.server.requests) == 1


def test_export_of_remote_trace_to_server_without_workspaces_asks_for_them_once(mlflow: FakeMLflow) -> None:
    exporter = new_exporter(mlflow)
    for number in range(3):
        export(exporter, make_remote_spans(f"s{number}"))
    exporter.shutdown()
    assert counts(exporter) == (3, 0)
    assert len(mlflow.server.to(SERVER_INFO)) == 1
    assert len(mlflow.server.requests) == 4


@pytest.mark.parametrize("answer", [Answer(503), Answer(403), Answer(200, body=b"<html>"), Answer(404), Answer(200)])
def test_export_of_remote_trace_with_unusable_lookup_counts_as_delivered(mlflow: FakeMLflow, answer: Answer) -> None:
    """What a server answers to a question says nothing about spans that it accepted."""
    spans = make_remote_spans("a")
    mlflow.hidden = {trace_name(spans[0])}
    mlflow.serve_lookups(*spans)
    mlflow.lookup = lambda _: answer
    exporter = new_exporter(mlflow, workspace="team-b")
    export(exporter, spans)
    exporter.shutdown()
    assert counts(exporter) == (1, 0)
