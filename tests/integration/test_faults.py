"""Faults of a server: it rejects a part of a batch, loses its database, requires a password."""

import base64
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor
from support.fast_retries import skip_retry_delays
from support.markers import SECRET, has_marker
from support.mlflow_server import MLflowServer
from support.postgres import Postgres
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import make_rejectable_traces, make_traces, stored_span_names, wait_until

MAX_REQUESTS = 40
"""Limit of requests for 200 traces with three bad spans among them."""
ADMIN_PASSWORD = f"{SECRET} of the admin"
REJECTED_TRACES = {"first, middle and last": (0, 100, 199), "side by side": (63, 64, 65), "scattered": (17, 90, 151)}


def database(server: MLflowServer) -> Path:
    return server.log.parent / "mlflow.db"


class RejectingServer:
    """Rejects a whole request with a marked span, like MLflow, and records the spans of other requests.

    The mark is the status of the response; of several marked spans, the first one counts.
    """

    def __init__(self, server: ScriptedServer) -> None:
        self.accepted: list[str] = []
        server.answer_with(TRACES_PATH, self)

    def __call__(self, request: RecordedRequest) -> Answer:
        spans = request.spans()
        for span in spans:
            for attribute in span.attributes:
                if attribute.key == "marked":
                    return self.reject(attribute.value.int_value)
        self.accepted += [span.name for span in spans]
        return ACCEPTED

    def reject(self, status: int) -> Answer:
        if status == 500:
            return Answer(500, body=b"Internal Server Error")
        body = json.dumps({"detail": "a marked span is not accepted"}).encode()
        return Answer(status, headers={"Content-Type": "application/json"}, body=body)


@pytest.mark.parametrize("traces", REJECTED_TRACES.values())
@pytest.mark.parametrize("statuses", [(400, 400, 400), (422, 422, 422), (400, 422, 400)])
def test_export_with_rejected_spans_drops_only_these(
    statuses: tuple[int, ...],
    traces: tuple[int, ...],
    scripted_server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    status_by_trace = dict(zip(traces, statuses, strict=True))

    def attributes(trace: int, span: int) -> Mapping[str, Any]:
        return {"marked": status_by_trace[trace]} if trace in status_by_trace and span == 1 else {}

    def find_lines(words: str) -> dict[str, str]:
        """Return the log lines with these words by span."""
        lines = [record.getMessage() for record in caplog.records if words in record.getMessage()]
        return {line.partition("'")[2].partition("' of trace tr-")[0]: line for line in lines}

    rejecting = RejectingServer(scripted_server)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=1)
    spans = make_traces(200, children=2, attributes=attributes)
    marked = {f"child {trace}.1": status for trace, status in status_by_trace.items()}
    exporter.export(spans)
    begin = time.monotonic()
    exporter.force_flush(60_000)
    assert time.monotonic() - begin < 60
    exporter.shutdown()
    stats = exporter.stats()
    assert sorted(rejecting.accepted) == sorted({span.name for span in spans} - set(marked))  # each once
    assert (stats.delivered, stats.dropped) == (597, 3)
    assert len(scripted_server.to(TRACES_PATH)) == stats.requests <= MAX_REQUESTS
    dropped = find_lines("Dropped span")
    assert set(dropped) == set(marked)
    for name, status in marked.items():
        assert f"{status}: a marked span is not accepted" in dropped[name]


@pytest.mark.parametrize("traces", REJECTED_TRACES.values())
def test_export_with_spans_answered_500_drops_only_these(
    traces: tuple[int, ...], scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def attributes(trace: int, span: int) -> Mapping[str, Any]:
        return {"marked": 500} if trace in traces and span == 1 else {}

    rejecting = RejectingServer(scripted_server)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=1)
    spans = make_traces(200, children=2, attributes=attributes)
    sender = threading.Thread(target=exporter.export, args=(spans,))
    sender.start()
    others: list[ReadableSpan] = []
    deadline = time.monotonic() + 90
    while exporter.stats().dropped < len(traces) and time.monotonic() < deadline:
        others += make_spans(f"other {len(others)}")
        exporter.export(others[-1:])
        time.sleep(0.1)
    sender.join()
    assert exporter.force_flush(30_000)
    exporter.shutdown()
    stats = exporter.stats()
    marked = {f"child {trace}.1" for trace in traces}
    assert sorted(rejecting.accepted) == sorted({span.name for span in [*spans, *others]} - marked)  # each once
    assert (stats.delivered, stats.dropped) == (600 + len(others) - len(marked), len(marked))
    # Five requests for each marked span, and a few before the first of the others is accepted.
    assert stats.requests - len(others) <= MAX_REQUESTS + 5 * len(marked) + 5
    dropped = [record.getMessage() for record in caplog.records if "Dropped span" in record.getMessage()]
    assert {line.partition("'")[2].partition("' of trace tr-")[0] for line in dropped} == marked
    assert len(dropped) == len(marked)
    assert all("500: Internal Server Error" in line for line in dropped)


def test_server_that_answers_500_to_everything_gets_few_requests_and_all_spans(scripted_server: ScriptedServer) -> None:
    """As during an outage of the Kubernetes API, which is not the fault of any span."""
    failing = threading.Event()
    failing.set()
    accepted: list[str] = []

    def answer(request: RecordedRequest) -> Answer:
        if failing.is_set():
            return Answer(500, body=b"Internal Server Error")
        accepted.extend(span.name for span in request.spans())
        return ACCEPTED

    scripted_server.answer_with(TRACES_PATH, answer)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=1)
    spans = make_traces(200, children=2)
    exporter.export(spans)  # until its time-out of 10 s
    requests_during_outage = len(scripted_server.to(TRACES_PATH))
    failing.clear()
    assert exporter.force_flush(60_000)
    stats = exporter.stats()
    exporter.shutdown()
    assert (stats.delivered, stats.dropped) == (600, 0)
    assert sorted(accepted) == sorted(span.name for span in spans)
    assert requests_during_outage <= 20
    assert stats.requests - requests_during_outage <= 20


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_that_often_fails_gets_all_spans(status: int, scripted_server: ScriptedServer) -> None:
    chance = random.Random(7)
    accepted: list[str] = []

    def answer(request: RecordedRequest) -> Answer:
        if chance.random() < 0.7:
            return Answer(status, body=b"Internal Server Error")
        accepted.extend(span.name for span in request.spans())
        return ACCEPTED

    scripted_server.answer_with(TRACES_PATH, answer)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=1)
    spans = [span for _ in range(5) for span in make_traces(4, children=1)]
    with skip_retry_delays(exporter, 0.2):
        for start in range(0, len(spans), 8):
            exporter.export(spans[start : start + 8])
        wait_until(lambda: exporter.stats().delivered >= len(spans), 120)
    stats = exporter.stats()
    exporter.shutdown()
    assert (stats.delivered, stats.dropped) == (len(spans), 0)
    assert sorted(accepted) == sorted(span.name for span in spans)


def test_export_without_sanitizer_drops_only_spans_that_mlflow_rejects(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Without the sanitizer, as if these values were not known to be rejected.
    monkeypatch.setattr("mlflow_otlp_exporter._internal.delivery.batcher.sanitize_attributes", lambda *_, **__: None)
    monkeypatch.setattr("mlflow_otlp_exporter._internal.delivery.batcher.sanitize_name", lambda _: None)
    rejected: dict[tuple[int, int], Mapping[str, Any]] = {
        (17, 0): {"session.id": "s" * 600},
        (90, 1): {"mlflow.llm.cost": "much"},
        (151, 0): {"mlflow.traceTag.mlflow.traceName": "n" * 5000},
    }
    number = mlflow_server.create_experiment("rejected")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow_server.uri, experiment_id=number)
    before = mlflow_server.count_requests()
    spans = make_traces(200, children=2, attributes=lambda trace, span: rejected.get((trace, span), {}))
    exporter.export(spans)
    exporter.force_flush(30_000)
    stats = exporter.stats()
    exporter.shutdown()
    dropped = {"root 17", "child 90.1", "root 151"}
    assert stored_span_names(database(mlflow_server), number) == sorted({span.name for span in spans} - dropped)
    assert (stats.delivered, stats.dropped) == (597, 3)
    assert mlflow_server.count_requests() - before == stats.requests <= MAX_REQUESTS
    for name, reason in (
        ("root 17", "'Session ID' exceeds the maximum length of 250 characters"),
        ("child 90.1", "422: "),
        ("root 151", "exceeds the maximum length"),
    ):
        lines = [record.getMessage() for record in caplog.records if f"span '{name}' of" in record.getMessage()]
        assert len(lines) == 1
        assert reason in lines[0]


def test_export_with_sanitized_spans_takes_one_request(mlflow_server: MLflowServer) -> None:
    number = mlflow_server.create_experiment("sanitized")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow_server.uri, experiment_id=number, max_request_size=0)
    before = mlflow_server.count_requests()
    spans = make_rejectable_traces()
    result = exporter.export(spans)
    exporter.shutdown()
    assert result is SpanExportResult.SUCCESS
    assert mlflow_server.count_requests() - before == 1
    assert len(stored_span_names(database(mlflow_server), number)) == len(spans)


# Passwords


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server that requires user and password."""
    environment = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
    }
    folder = tmp_path_factory.mktemp("mlflow-basic-auth")
    server = MLflowServer.start(folder, extra=["--app-name", "basic-auth"], environment=environment)
    encoded = base64.b64encode(f"admin:{ADMIN_PASSWORD}".encode()).decode()
    server.headers["Authorization"] = f"Basic {encoded}"
    yield server
    server.stop()


def test_export_with_user_and_password_is_accepted(
    guarded_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = guarded_server.create_experiment("with a password")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=guarded_server.uri, experiment="with a password")
    assert exporter.export(make_traces(1, children=1)) is SpanExportResult.SUCCESS
    assert exporter.stats().delivered == 2
    exporter.shutdown()
    assert stored_span_names(database(guarded_server), number) == ["child 0.1", "root 0"]


def test_edit_permission_suffices_for_spans_attachments_and_metadata(
    guarded_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = guarded_server.create_experiment("by an editor")
    guarded_server.call_rest(
        "POST", "/api/2.0/mlflow/users/create", {"username": "editor", "password": f"{SECRET}, too"}
    )
    grant = {"resource_type": "experiment", "resource_id": number, "username": "editor", "permission": "EDIT"}
    guarded_server.call_rest("POST", "/api/3.0/mlflow/users/permissions/grant", grant)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "editor")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}, too")
    picture = base64.b64encode(bytes(range(256)) * 50).decode()
    attributes = {
        "input.value": f"data:image/png;base64,{picture}",
        "mlflow.traceTag.mlflow.linkedPrompts": '[{"name": "greeting", "version": "1"}]',
    }
    exporter = MLflowSpanExporter(
        tracking_uri=guarded_server.uri, experiment="by an editor", attachments=True, trace_info=True
    )
    assert exporter.export(make_traces(1, attributes=lambda *_: attributes)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    stats = exporter.stats()
    assert (
        stats.attachments_uploaded,
        stats.attachments_failed,
        stats.metadata_updates,
        stats.metadata_updates_dropped,
    ) == (1, 0, 1, 0)
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": number}}
    body = {"locations": [place], "filter": "prompt = 'greeting/1'", "max_results": 5}
    assert len(guarded_server.call_rest("POST", "/api/3.0/mlflow/traces/search", body)["traces"]) == 1


def test_wrong_password_is_logged_without_it_and_retried(
    guarded_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    number = guarded_server.create_experiment("with a wrong password")
    body = {"username": "bot", "password": f"{SECRET}, the first"}
    guarded_server.call_rest("POST", "/api/2.0/mlflow/users/create", body)
    guarded_server.call_rest("PATCH", "/api/2.0/mlflow/users/update-admin", {"username": "bot", "is_admin": True})
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bot")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}, the second")
    caplog.set_level(logging.DEBUG)
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=guarded_server.uri, experiment_id=number)
    assert exporter.export(make_traces(1, children=1)) is SpanExportResult.FAILURE
    stats = exporter.stats()
    assert (stats.delivered, stats.dropped) == (0, 0)
    assert caplog.text.count("Export failing, spans are queued in memory") == 1
    assert "You are not authenticated" in caplog.text
    assert "user bot (environment variable MLFLOW_TRACKING_USERNAME)" in caplog.text
    guarded_server.call_rest(
        "PATCH", "/api/2.0/mlflow/users/update-password", {"username": "bot", "password": f"{SECRET}, the second"}
    )
    assert exporter.force_flush()
    exporter.shutdown()
    assert exporter.stats().delivered == 2
    assert stored_span_names(database(guarded_server), number) == ["child 0.1", "root 0"]
    assert not has_marker(caplog.text)


# Database outages


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


@pytest.fixture(scope="module")
def postgres_server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server with a PostgreSQL database."""
    extra = ["--backend-store-uri", postgres.uri]
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow-postgres"), extra=extra)
    yield server
    server.stop()


def names_in(postgres: Postgres, experiment: str) -> list[str]:
    return sorted(postgres.query(f"SELECT name FROM spans WHERE experiment_id = {int(experiment)}"))


@pytest.mark.needs("postgresql")
def test_export_with_sanitized_spans_on_postgresql_takes_one_request(
    postgres: Postgres, postgres_server: MLflowServer
) -> None:
    number = postgres_server.create_experiment("sanitized")
    exporter = MLflowSpanExporter(
        timeout=60, tracking_uri=postgres_server.uri, experiment_id=number, max_request_size=0
    )
    before = postgres_server.count_requests()
    spans = make_rejectable_traces()
    result = exporter.export(spans)
    exporter.shutdown()
    assert result is SpanExportResult.SUCCESS
    assert postgres_server.count_requests() - before == 1
    assert len(names_in(postgres, number)) == len(spans)


@pytest.mark.needs("postgresql")
def test_service_name_that_postgresql_rejects_is_sanitized(postgres: Postgres, postgres_server: MLflowServer) -> None:
    """MLflow stores the attributes of the resource as tags."""
    number = postgres_server.create_experiment("sanitized resource")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=postgres_server.uri, experiment_id=number)
    result = exporter.export(make_spans("root", service="a\x00b"))
    exporter.shutdown()
    assert result is SpanExportResult.SUCCESS
    assert names_in(postgres, number) == ["root"]


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_database_restart_costs_no_span_and_no_token(
    mode: Literal["fast", "immediate"], postgres: Postgres, postgres_server: MLflowServer
) -> None:
    number = postgres_server.create_experiment(f"database restart, {mode}")
    usage = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
    exporter = MLflowSpanExporter(tracking_uri=postgres_server.uri, experiment_id=number)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    before = len(postgres_server.statuses())
    pause = threading.Event()
    count = 0

    def make_spans_until(timeout_seconds: float, is_done: Callable[[], object] = bool) -> None:
        """Make traces until a condition is true, or the time is over."""
        nonlocal count
        end = time.monotonic() + timeout_seconds
        while time.monotonic() < end and not is_done():
            with tracer.start_as_current_span(f"root {count}"):
                tracer.start_span("child", attributes={"mlflow.chat.tokenUsage": json.dumps(usage)}).end()
            count += 1
            pause.wait(0.03)

    make_spans_until(2)
    postgres.stop(mode)
    make_spans_until(30, lambda: 503 in postgres_server.statuses()[before:])
    make_spans_until(1)
    postgres.start()
    make_spans_until(2)
    assert provider.force_flush(60_000)
    stats = exporter.stats()
    provider.shutdown()
    assert (stats.delivered, stats.dropped) == (2 * count, 0)
    assert 503 in postgres_server.statuses()[before:]
    assert Counter(names_in(postgres, number)) == {"child": count, **{f"root {number}": 1 for number in range(count)}}
    infos = postgres_server.search_traces(number)
    assert Counter(info["trace_metadata"]["mlflow.trace.tokenUsage"] for info in infos) == {json.dumps(usage): count}
