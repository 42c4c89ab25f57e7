"""Trace metadata updates and feedback change nothing else, on every tested version of MLflow."""

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.mlflow_api.assessments import build_assessment, mlflow_trace_id
from support.environments import MLFLOW_VERSIONS, mlflow_python
from support.mlflow_server import MLflowServer
from support.spans import provider
from support.traces import make_traces

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("trace_updates")]

COST = "mlflow.trace.cost"
USAGE = "mlflow.trace.tokenUsage"
LINKED = "mlflow.traceTag.mlflow.linkedPrompts"
SESSION, USER, NAME = "mlflow.trace.session", "mlflow.trace.user", "mlflow.traceName"
AGENT: Mapping[str, Any] = {
    "openinference.span.kind": "AGENT",
    "input.value": "Will it rain in Lyon?",
    "output.value": "No.",
    "session.id": "s-42",
    "user.id": "ada",
    "tag.tags": ("beta",),
    "metadata": '{"release": "2.3.1"}',
}
CALL: Mapping[str, Any] = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "local",
    "llm.token_count.prompt": 100,
    "llm.token_count.completion": 50,
    "llm.token_count.total": 150,
    "llm.cost.prompt": 0.25,
    "llm.cost.completion": 0.5,
    "llm.cost.total": 0.75,
}
SECOND = 10**9


def parse_version(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


VERSIONS: list[object] = [*sorted(MLFLOW_VERSIONS, key=parse_version)]


class VersionedServer:
    """A server and its version."""

    def __init__(self, version: str, server: MLflowServer) -> None:
        self.version, self.server = parse_version(version), server

    @property
    def has_otlp_metadata(self) -> bool:
        """Whether the server reads names, tags, sessions and users from OTLP spans, without an update."""
        return self.version >= (3, 14)

    @property
    def has_cost(self) -> bool:
        return self.version >= (3, 10)

    def read_trace(self, spans: list[ReadableSpan]) -> dict[str, Any]:
        (context,) = {span.context.trace_id for span in spans if span.context}
        record = self.server.trace(f"{context:032x}")
        assert record is not None
        return {**record["trace_info"], "spans": record.get("spans")}

    def count_traces(self, experiment: str, condition: str) -> int:
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        body = {"locations": [location], "filter": condition, "max_results": 10}
        return len(self.server.call_rest("POST", "/api/3.0/mlflow/traces/search", body).get("traces", []))


@pytest.fixture(scope="module", params=VERSIONS)
def mlflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionedServer]:
    """A server of each version."""
    version = str(request.param)
    server = MLflowServer.start(tmp_path_factory.mktemp(f"mlflow-{version}"), python=mlflow_python(version))
    yield VersionedServer(version, server)
    server.stop()


class AgentTrace:
    """Spans of one agent's trace with fixed times."""

    def __init__(
        self,
        *,
        has_failed: bool = False,
        parent: SpanContext | None = None,
        root: Mapping[str, Any] | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        memory = InMemorySpanExporter()
        start = 1_795_361_518_349 * 10**6
        with provider(memory) as tracer_provider:
            tracer = tracer_provider.get_tracer("tests")
            parent_context = trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent else None
            root_span = tracer.start_span(
                "agent", parent_context, start_time=start, attributes={**AGENT, **(root or {})}
            )
            root_context = trace.set_span_in_context(root_span)
            attributes = {**CALL, **(call or {})}
            tracer.start_span("call", root_context, start_time=start, attributes=attributes).end(start + SECOND)
            if has_failed:
                root_span.set_status(Status(StatusCode.ERROR, "no"))
            root_span.end(start + 2 * SECOND)
            self.spans = list(memory.get_finished_spans())
            memory.clear()
            tracer.start_span("late call", root_context, start_time=start + SECOND, attributes=CALL).end(
                start + 5 * SECOND
            )
            self.late_spans = list(memory.get_finished_spans())


def assert_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Assert that all earlier values are unchanged, except for quotes around session and user."""
    for key in before.keys() - {"tags", "trace_metadata"}:
        assert after[key] == before[key], key
    assert set(before) >= set(after) - {"tags", "trace_metadata"}
    assert before["tags"].items() <= after["tags"].items()
    for key, value in before["trace_metadata"].items():
        assert after["trace_metadata"][key] == (json.loads(value) if value.startswith('"') else value)


def export_spans(exporter: MLflowSpanExporter, spans: list[ReadableSpan]) -> None:
    assert exporter.export(spans) is SpanExportResult.SUCCESS


def test_agent_trace_has_metadata_and_is_found_by_filters(mlflow: VersionedServer) -> None:
    experiment_id = mlflow.server.create_experiment("rich")
    exporter, agent = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="rich"), AgentTrace()
    export_spans(exporter, agent.spans)
    before = mlflow.read_trace(agent.spans)
    exporter.shutdown(60_000)
    after = mlflow.read_trace(agent.spans)
    assert_unchanged(before, after)
    assert exporter.stats().metadata_updates == (0 if mlflow.has_otlp_metadata else 1)
    assert (after["execution_duration"], after["state"]) == ("2s", "OK")
    assert {NAME: "agent", "beta": "true", "release": "2.3.1"}.items() <= after["tags"].items()
    metadata = after["trace_metadata"]
    assert (metadata[SESSION], metadata[USER]) == ("s-42", "ada")
    assert json.loads(metadata[USAGE]) == {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
    if mlflow.has_cost:
        assert json.loads(metadata[COST]) == {"input_cost": 0.25, "output_cost": 0.5, "total_cost": 0.75}
    assert "Will it rain in Lyon?" in after["request_preview"]
    assert "No." in after["response_preview"]
    for condition in (
        "tags.`mlflow.traceName` = 'agent'",
        "trace.name = 'agent'",
        "tags.beta = 'true'",
        "tags.release = '2.3.1'",
        f"metadata.`{SESSION}` = 's-42'",
        f"metadata.`{USER}` = 'ada'",
    ):
        assert mlflow.count_traces(experiment_id, condition) == 1, condition


def test_traces_of_one_request_have_their_own_names(mlflow: VersionedServer) -> None:
    experiment_id = mlflow.server.create_experiment("names")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="names")
    spans = make_traces(30)
    export_spans(exporter, spans)
    exporter.shutdown(60_000)
    assert exporter.stats().requests == 1
    names = {info["trace_id"]: info["tags"][NAME] for info in mlflow.server.search_traces(experiment_id)}
    assert names == {f"tr-{span.context.trace_id:032x}": span.name for span in spans if span.context}


def test_trace_with_late_spans_updates_totals(mlflow: VersionedServer) -> None:
    mlflow.server.create_experiment("grows")
    exporter, agent = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="grows"), AgentTrace()
    export_spans(exporter, agent.spans)
    exporter.force_flush()
    record = mlflow.read_trace(agent.spans)
    export_spans(exporter, agent.late_spans)
    exporter.shutdown(60_000)
    updated = mlflow.read_trace(agent.spans)
    assert record["execution_duration"] == "2s"
    assert updated["execution_duration"] == "5s"
    assert updated["tags"] == record["tags"]
    metadata = updated["trace_metadata"]
    assert json.loads(metadata[USAGE]) == {"input_tokens": 200, "output_tokens": 100, "total_tokens": 300}
    if mlflow.has_cost:
        assert json.loads(metadata[COST]) == {"input_cost": 0.5, "output_cost": 1.0, "total_cost": 1.5}
    assert {key: value for key, value in metadata.items() if key not in (USAGE, COST)} == {
        key: value for key, value in record["trace_metadata"].items() if key not in (USAGE, COST)
    }


def test_trace_update_with_late_span_first_keeps_later_end_and_error_state(mlflow: VersionedServer) -> None:
    """The span of another process ends last but arrives first."""
    mlflow.server.create_experiment("failed")
    exporter, agent = (
        MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="failed"),
        AgentTrace(has_failed=True),
    )
    export_spans(exporter, agent.late_spans)
    export_spans(exporter, agent.spans)
    before = mlflow.read_trace(agent.spans)
    exporter.shutdown(60_000)
    after = mlflow.read_trace(agent.spans)
    assert_unchanged(before, after)
    assert (after["execution_duration"], after["state"]) == ("5s", "ERROR")
    assert after["tags"][NAME] == "agent"


def test_trace_update_after_user_edits_keeps_them(mlflow: VersionedServer) -> None:
    mlflow.server.create_experiment("people")
    exporter, agent = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="people"), AgentTrace()
    export_spans(exporter, agent.spans)
    path = f"/api/3.0/mlflow/traces/{mlflow.read_trace(agent.spans)['trace_id']}"
    written = {"seen": "yes", "third": "too"}
    if mlflow.version < (3, 13) or mlflow.has_otlp_metadata:
        written["release"] = "mine"  # MLflow 3.13 mixes up tags of traces, and the update corrects them
    for key, value in written.items():
        mlflow.server.call_rest("PATCH", f"{path}/tags", {"key": key, "value": value})
    assessment = {
        "assessment_name": "good",
        "source": {"source_type": "HUMAN", "source_id": "eve"},
        "feedback": {"value": True},
    }
    mlflow.server.call_rest("POST", f"{path}/assessments", {"assessment": assessment})
    before = mlflow.read_trace(agent.spans)
    exporter.shutdown(60_000)
    after = mlflow.read_trace(agent.spans)
    assert_unchanged(before, after)
    assert {**written, NAME: "agent"}.items() <= after["tags"].items()
    assert [assessment["assessment_name"] for assessment in after["assessments"]] == ["good"]


def test_trace_without_root_gets_no_update_if_it_is_not_completed(
    mlflow: VersionedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root belongs to another process, which sends the update."""
    monkeypatch.setenv("MLFLOW_OTLP_ROOT_WAIT", "none")
    mlflow.server.create_experiment("part")
    remote = SpanContext(1 << 100 | mlflow.version[1], 7, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    exporter, agent = (
        MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="part"),
        AgentTrace(parent=remote),
    )
    export_spans(exporter, agent.spans)
    before = mlflow.read_trace(agent.spans)
    exporter.shutdown(60_000)
    assert mlflow.read_trace(agent.spans) == before
    assert before["state"] == "IN_PROGRESS"


def test_trace_info_enabled_stores_source_run_and_metadata(
    mlflow: VersionedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_TRACE_INFO", "true")
    experiment_id = mlflow.server.create_experiment("everything")
    response = mlflow.server.call_rest("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": experiment_id})
    run = response["run"]["info"]["run_id"]
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="everything", run_id=run)
    agent = AgentTrace()
    export_spans(exporter, agent.spans)
    before = mlflow.read_trace(agent.spans)
    exporter.shutdown(60_000)
    after = mlflow.read_trace(agent.spans)
    assert_unchanged(before, after)
    metadata = after["trace_metadata"]
    assert (metadata["release"], metadata["mlflow.sourceRun"], metadata["mlflow.source.type"]) == (
        "2.3.1",
        run,
        "LOCAL",
    )
    assert metadata["mlflow.source.name"]
    assert "mlflow.traceInfoFinalized" not in metadata
    assert mlflow.count_traces(experiment_id, f"attributes.run_id = '{run}'") == 1
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="everything")
    export_spans(exporter, agent.late_spans)
    exporter.shutdown(60_000)
    updated = mlflow.read_trace(agent.spans)["trace_metadata"]
    assert json.loads(updated[USAGE])["total_tokens"] == 300


def test_trace_with_linked_prompt_is_found_by_prompt(mlflow: VersionedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_TRACE_INFO", "true")
    experiment_id = mlflow.server.create_experiment("prompts")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="prompts")
    agent = AgentTrace(root={LINKED: '[{"name": "greeting", "version": "2"}]'}, call={"gen_ai.prompt.name": "other"})
    export_spans(exporter, agent.spans)
    before = mlflow.read_trace(agent.spans)
    exporter.shutdown(60_000)
    after = mlflow.read_trace(agent.spans)
    # MLflow 3.13 stores a tag that is no JSON, and the update corrects it.
    before["tags"].pop(LINKED.removeprefix("mlflow.traceTag."), None)
    assert_unchanged(before, after)
    assert after["tags"][LINKED.removeprefix("mlflow.traceTag.")] == '[{"name": "greeting", "version": "2"}]'
    stats = exporter.stats()
    assert (stats.metadata_updates, stats.metadata_updates_dropped) == (1, 0)
    if mlflow.version >= (3, 8):  # MLflow 3.6 has neither the REST call nor the filter
        assert mlflow.count_traces(experiment_id, "prompt = 'greeting/2'") == 1
        assert mlflow.count_traces(experiment_id, "prompt = 'greeting/1'") == 0


def test_trace_updates_by_two_exporters_at_once_lose_nothing(mlflow: VersionedServer) -> None:
    """One exporter updates the trace while the other sends late spans of it."""
    mlflow.server.create_experiment("crowd")
    exporters = [MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="crowd") for _ in range(2)]
    agent = AgentTrace()
    export_spans(exporters[0], agent.spans)
    flush = threading.Thread(target=exporters[0].force_flush)
    flush.start()
    export_spans(exporters[1], agent.late_spans)
    flush.join()
    for exporter in exporters:
        exporter.shutdown(60_000)
    after = mlflow.read_trace(agent.spans)
    assert json.loads(after["trace_metadata"][USAGE])["total_tokens"] == 300
    assert (after["tags"][NAME], after["trace_metadata"][SESSION]) == ("agent", "s-42")


# Feedback


def test_feedback_sent_before_its_trace_is_stored_once(mlflow: VersionedServer) -> None:
    mlflow.server.create_experiment("feedback")
    exporter, agent = (
        MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="feedback"),
        AgentTrace(),
    )
    context = agent.spans[0].context
    assert context is not None
    trace_id = mlflow_trace_id(context.trace_id)
    values: list[Any] = [True, 0.5, 3, "good", ["a", 1], {"stars": 4}]
    assessments = [
        build_assessment(
            "feedback",
            trace_id,
            f"value {index}",
            value,
            workspace=None,
            source="ada",
            rationale="why not",
            metadata={"channel": "web"},
            span_id=context.span_id,
        )
        for index, value in enumerate(values)
    ]
    assessments.append(build_assessment("expectation", trace_id, "expected", {"city": "Paris"}, workspace=None))
    pipeline = exporter._pipeline
    assert pipeline is not None
    for assessment in assessments:
        pipeline.send_assessment(assessment)
    assert not pipeline.wait_for_rest_calls(20.0)  # the server does not have the trace yet
    assert exporter.stats().feedback == 0
    export_spans(exporter, agent.spans)
    assert pipeline.wait_for_rest_calls(20.0)
    for assessment in assessments:
        pipeline.send_assessment(assessment)  # as after a lost response
    assert pipeline.wait_for_rest_calls(20.0)
    exporter.shutdown(60_000)
    assert (exporter.stats().feedback, exporter.stats().feedback_dropped) == (14, 0)
    stored = {assessment["assessment_id"]: assessment for assessment in mlflow.read_trace(agent.spans)["assessments"]}
    assert stored.keys() == {assessment.id for assessment in assessments}
    assert [stored[assessment.id]["feedback"]["value"] for assessment in assessments[:-1]] == values
    assert stored[assessments[-1].id]["expectation"]["serialized_value"]["value"] == '{"city": "Paris"}'
    first = stored[assessments[0].id]
    assert (first["rationale"], first["metadata"]) == ("why not", {"channel": "web"})
    assert (first["source"], first["span_id"]) == (
        {"source_type": "HUMAN", "source_id": "ada"},
        f"{context.span_id:016x}",
    )
