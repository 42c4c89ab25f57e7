"""The exporter against a scripted server; tests/matrix runs it with the oldest and the newest OpenTelemetry."""

import inspect
import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter, Stats
from mlflow_otlp_exporter._internal.common import process_end
from mlflow_otlp_exporter._internal.delivery import pipeline as pipeline_module
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from support.interruptions import INTERRUPTIONS, InterruptedCondition, raise_error
from support.markers import SECRET, has_marker
from support.scripted_server import ACCEPTED, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans

SUCCESS, FAILURE = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
GET_BY_NAME, CREATE = "/api/2.0/mlflow/experiments/get-by-name", "/api/2.0/mlflow/experiments/create"
JSON = {"Content-Type": "application/json"}


@contextmanager
def open_exporter(*arguments: Any, **keywords: Any) -> Iterator[MLflowSpanExporter]:
    exporter = MLflowSpanExporter(*arguments, **keywords)
    try:
        yield exporter
    finally:
        exporter.shutdown()


def experiment_response(number: str) -> Answer:
    body = {"experiment": {"experiment_id": number, "lifecycle_stage": "active"}}
    return Answer(200, headers=JSON, body=json.dumps(body).encode())


def test_exporter_has_upstream_arguments_in_upstream_order() -> None:
    assert issubclass(MLflowSpanExporter, OTLPSpanExporter)
    ours = list(inspect.signature(MLflowSpanExporter.__init__).parameters.values())
    positional = [parameter.name for parameter in ours if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == [
        "self",
        "endpoint",
        "certificate_file",
        "client_key_file",
        "client_certificate_file",
        "headers",
        "timeout",
        "compression",
        "session",
    ]
    upstream = [name for name in inspect.signature(OTLPSpanExporter.__init__).parameters if not name.startswith("_")]
    assert set(upstream) <= {parameter.name for parameter in ours}


def test_export_sends_headers_and_spans(scripted_server: ScriptedServer) -> None:
    arguments = {"tracking_uri": scripted_server.url, "experiment_id": 7, "workspace": "team-a", "run_id": "r1"}
    with open_exporter(**arguments, credentials=SECRET) as exporter:
        assert exporter.export(make_spans("a", "b")) is SUCCESS
        assert exporter.stats() == Stats(delivered=2, requests=1)
    (request,) = scripted_server.requests
    assert (request.method, request.path) == ("POST", "/v1/traces")
    expected = {
        "content-type": "application/x-protobuf",
        "x-mlflow-experiment-id": "7",
        "x-mlflow-workspace": "team-a",
        "x-mlflow-run-id": "r1",
        "authorization": f"Bearer {SECRET}",
    }
    assert expected.items() <= request.headers.items()
    assert [span.name for span in request.spans()] == ["a", "b"]


def test_exporter_works_with_upstream_arguments_only(scripted_server: ScriptedServer) -> None:
    session = requests.Session()
    arguments = (scripted_server.traces_url, None, None, None, {"X-Key": "1"}, 5, Compression.Gzip, session)
    with open_exporter(*arguments) as exporter:
        assert exporter.export(make_spans("a" * 2000)) is SUCCESS
    request = scripted_server.to("/v1/traces")[0]
    assert request.headers["x-key"] == "1"
    assert request.headers["content-encoding"] == "gzip"
    assert [span.name for span in request.spans()] == ["a" * 2000]
    # The guessed REST API does not exist, so the request has no empty experiment header.
    assert "x-mlflow-experiment-id" not in request.headers


def test_guessed_mlflow_without_answer_gets_spans_with_experiment_after_it_missed_the_header(
    scripted_server: ScriptedServer,
) -> None:
    lookups = iter([Answer(close="after-request"), experiment_response("7")])
    scripted_server.answer_with(GET_BY_NAME, lambda _: next(lookups))
    missing = b'{"detail":[{"type":"missing","loc":["header","x-mlflow-experiment-id"],"msg":"Field required"}]}'

    def answer(request: RecordedRequest) -> Answer:
        return ACCEPTED if "x-mlflow-experiment-id" in request.headers else Answer(422, headers=JSON, body=missing)

    scripted_server.answer_with("/v1/traces", answer)
    with open_exporter(scripted_server.traces_url, experiment="agents") as exporter:
        assert exporter.export(make_spans("a")) is FAILURE
        assert exporter.force_flush()
        assert (exporter.stats().delivered, exporter.stats().dropped) == (1, 0)
    requests_to_traces = scripted_server.to("/v1/traces")
    assert [request.headers.get("x-mlflow-experiment-id") for request in requests_to_traces] == [None, "7"]


def test_experiment_header_of_user_avoids_lookup(scripted_server: ScriptedServer) -> None:
    with open_exporter(scripted_server.traces_url, headers={"X-MLflow-Experiment-Id": "5"}) as exporter:
        assert exporter.export(make_spans("a")) is SUCCESS
    (request,) = scripted_server.requests
    assert request.headers["x-mlflow-experiment-id"] == "5"


def test_experiment_name_is_resolved_at_first_export_and_created_if_enabled(
    scripted_server: ScriptedServer,
) -> None:
    missing = Answer(404, headers=JSON, body=b'{"error_code":"RESOURCE_DOES_NOT_EXIST"}')
    scripted_server.answer(missing, path=GET_BY_NAME)
    scripted_server.answer(Answer(200, headers=JSON, body=b'{"experiment_id":"9"}'), path=CREATE)
    arguments = {"tracking_uri": scripted_server.url, "experiment": "42", "workspace": "team-a"}
    with open_exporter(**arguments, create_experiment=True, credentials=SECRET) as exporter:
        assert not scripted_server.requests
        for _ in range(2):
            assert exporter.export(make_spans("a")) is SUCCESS
    look_up, search, create, first, second = scripted_server.requests
    assert look_up.query == "experiment_name=42"
    assert json.loads(create.body) == {"name": "42"}
    for request in (look_up, search, create, first, second):
        assert request.headers["x-mlflow-workspace"] == "team-a"
        assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert first.headers["x-mlflow-experiment-id"] == second.headers["x-mlflow-experiment-id"] == "9"


def test_export_without_experiment_uses_service_name(scripted_server: ScriptedServer) -> None:
    numbers = {"experiment_name=bot": "3", "experiment_name=clerk": "4"}
    scripted_server.answer_with(GET_BY_NAME, lambda request: experiment_response(numbers[request.query]))
    with open_exporter(tracking_uri=scripted_server.url) as exporter:
        assert exporter.export([*make_spans("a", "b"), *make_spans("c", service="clerk")]) is SUCCESS
    sent = {
        request.headers["x-mlflow-experiment-id"]: [span.name for span in request.spans()]
        for request in scripted_server.to("/v1/traces")
    }
    assert sent == {"3": ["a", "b"], "4": ["c"]}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, headers={"Content-Type": "application/x-protobuf"}),
        Answer(200, headers={"Content-Type": "application/x-protobuf"}, body=b'{"partialSuccess":null}'),
        Answer(200, headers=JSON, body=b'{"partialSuccess":null}'),
        Answer(204),
        Answer(200, body=b"12345678", truncate=True),
    ],
    ids=["empty", "JSON labelled protobuf (MLflow 3.6)", "JSON", "204", "truncated"],
)
def test_export_sends_accepted_spans_once(scripted_server: ScriptedServer, answer: Answer) -> None:
    scripted_server.answer(answer)
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1") as exporter:
        assert exporter.export(make_spans("a")) is SUCCESS
    assert len(scripted_server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(302, headers={"Location": "/login"}), "redirects to /login"),
        (Answer(200, headers={"Content-Type": "text/html"}, body=b"<html>log in"), "HTML page"),
        (Answer(401, body=b"You are not authenticated."), "You are not authenticated."),
        (Answer(404, headers=JSON, body=b'{"message":"No Experiment with id=1 exists"}'), "No Experiment with id=1"),
    ],
)
def test_export_of_retryable_spans_fails_and_logs_once(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, answer: Answer, words: str
) -> None:
    scripted_server.answer(answer)
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1", credentials=SECRET) as exporter:
        assert exporter.export(make_spans("a", "b")) is FAILURE
        assert exporter.stats().dropped == exporter.stats().delivered == 0
        scripted_server.answer(answer, then=Answer(200))
        assert exporter.force_flush(30_000)
        assert exporter.stats().delivered == 2
    assert caplog.text.count(words) == 1
    assert "Export failing, spans are queued in memory" in caplog.text
    assert "Export recovered" in caplog.text
    assert not has_marker(caplog.text)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(Answer(400, headers=JSON, body=b'{"detail":"bad"}'), "400: bad"), (Answer(413), "traces: 413")],
)
def test_export_of_rejected_span_logs_its_name(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, answer: Answer, words: str
) -> None:
    scripted_server.answer(answer)
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1") as exporter:
        assert exporter.export(make_spans("culprit")) is FAILURE
        assert exporter.stats().dropped == 1
    assert caplog.text.count(words) == 1
    assert "span 'culprit' of trace tr-" in caplog.text


def test_shutdown_counts_and_logs_remaining_spans(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(Answer(302))
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1") as exporter:
        assert exporter.export(make_spans("a", "b")) is FAILURE
        exporter.shutdown(10_000)  # tries once or twice more, however slowly
        assert exporter.stats().dropped == 2
    assert "Spans dropped: not delivered before shutdown" in caplog.text


def test_export_drops_spans_at_memory_limit(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_BUFFER_BYTES", "5000")
    scripted_server.answer(Answer(302))
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1") as exporter:
        for _ in range(3):
            assert exporter.export(make_spans("a" * 1500)) is FAILURE
        assert exporter.stats().dropped == 2
        exporter.shutdown(10_000)
    assert "the server is unavailable and the memory limit is reached" in caplog.text


def test_export_with_partial_success_fails(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'
    scripted_server.answer(Answer(200, headers=JSON, body=body))
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1") as exporter:
        assert exporter.export(make_spans("a", "b")) is FAILURE
        assert (exporter.stats().delivered, exporter.stats().dropped) == (1, 1)
    assert "1 span rejected: too old" in caplog.text


def test_export_succeeds_after_server_recovers(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503), Answer(429), then=Answer(200))
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="1") as exporter:
        assert exporter.export(make_spans("a")) is SUCCESS
        assert exporter.stats() == Stats(delivered=1, requests=3, retries=2)
    bodies = {request.body for request in scripted_server.requests}
    assert len(bodies) == 1


def test_unused_credential_of_other_group_is_logged(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    scripted_server.answer(Answer(401))
    with open_exporter(scripted_server.traces_url, experiment_id="1") as exporter:
        exporter.export(make_spans("a"))
    assert "not used, because set for another server: MLFLOW_TRACKING_TOKEN" in caplog.text
    assert not has_marker(caplog.text)
    assert "authorization" not in scripted_server.requests[0].headers


def test_exporter_never_raises_after_construction(caplog: pytest.LogCaptureFixture) -> None:
    with open_exporter(tracking_uri="http://127.0.0.1:9", experiment_id="1", timeout=0.2) as exporter:
        assert exporter.export(make_spans("a")) is FAILURE
        assert exporter.export([object()]) is FAILURE  # type: ignore[list-item]
        assert exporter.export([]) is SUCCESS
        assert exporter.force_flush(100) is False
        exporter.shutdown(10_000)
    assert "Spans dropped: " in caplog.text
    assert exporter.export(make_spans("a")) is FAILURE
    assert "shut down" in caplog.messages[-1]
    exporter.shutdown()
    exporter.shutdown(timeout_millis=5)


def test_exporter_after_shutdown_warns_with_the_logger_of_upstream(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1)
    exporter.shutdown()
    assert not caplog.records
    assert exporter.export(make_spans("a")) is FAILURE
    exporter.shutdown()
    logger_name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert [(record.name, record.levelname) for record in caplog.records] == [(logger_name, "WARNING")] * 2


def test_export_returns_after_as_many_attempts_as_upstream(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_MAX_ATTEMPTS", 2)
    scripted_server.answer(Answer(503))
    with open_exporter(scripted_server.traces_url, experiment_id=1, timeout=60) as exporter:
        assert exporter.export(make_spans("a")) is FAILURE
        assert len(scripted_server.to("/v1/traces")) == 2
        scripted_server.answer(ACCEPTED)
        assert exporter.force_flush()
        assert exporter.stats().delivered == 1


def test_shutdown_during_backoff_makes_one_more_attempt(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503))
    with open_exporter(scripted_server.traces_url, experiment_id=1, timeout=0.2) as exporter:
        assert exporter.export(make_spans("a")) is FAILURE
        attempt_count = len(scripted_server.to("/v1/traces"))
    assert len(scripted_server.to("/v1/traces")) == attempt_count + 1
    assert exporter.stats().dropped == 1


def test_invalid_setting_raises_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="argument timeout="):
        MLflowSpanExporter(timeout=-1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI"):
        MLflowSpanExporter()


def test_exporter_ignores_environment_of_upstream(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Upstream up to 1.34 reads the timeout with int(), and every version would add these headers.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2.5")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-vendor=planted")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    with open_exporter(experiment_id="1") as exporter:
        assert exporter.export(make_spans("a")) is SUCCESS
    assert "x-vendor" not in scripted_server.requests[0].headers


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
@pytest.mark.parametrize(
    "value", [f"authorization=Bearer {SECRET};x", f'api-key="{SECRET}', SECRET, f"a={SECRET}\u00e4"]
)
@pytest.mark.parametrize("target", ["MLFLOW_TRACKING_URI", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_exporter_logs_no_header_that_upstream_cannot_parse(
    variable: str, value: str, target: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(target, "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    logger = logging.getLogger("opentelemetry.util.re")
    with caplog.at_level(logging.DEBUG):
        message = ""
        try:
            MLflowSpanExporter().shutdown()
        except ConfigurationError as error:
            message = str(error)
        assert not has_marker(message)
        assert not has_marker(caplog.text)
        logger.warning("of the application")
    assert "of the application" in caplog.text
    assert logger.filters == []


@pytest.mark.parametrize("processor", [BatchSpanProcessor, SimpleSpanProcessor])
def test_exporter_works_with_upstream_processors(scripted_server: ScriptedServer, processor: Any) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")))
    with provider.get_tracer("tests").start_as_current_span("root"):
        provider.get_tracer("tests").start_span("child").end()
    provider.shutdown()
    names = [span.name for request in scripted_server.requests for span in request.spans()]
    assert names == ["child", "root"]


def test_export_does_not_trace_its_own_requests(scripted_server: ScriptedServer) -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.requests")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(MLflowSpanExporter(tracking_uri=scripted_server.url)))
    scripted_server.answer_with(GET_BY_NAME, lambda _: experiment_response("1"))
    instrumentor = instrumentation.RequestsInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        provider.get_tracer("tests").start_span("only").end()
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    assert [span.name for request in scripted_server.to("/v1/traces") for span in request.spans()] == ["only"]


def test_trace_url_names_experiment_and_workspace(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(experiment_response("3"), path=GET_BY_NAME)
    trace = "tr-" + "0" * 30 + "ff"
    with open_exporter(tracking_uri=scripted_server.url + "/mlf", experiment_id="7", workspace="team-a") as exporter:
        url = f"{scripted_server.url}/mlf/#/experiments/7/traces?selectedEvaluationId={trace}&traceId={trace}"
        assert exporter.trace_url(255, check=False) == f"{url}&workspace=team-a"
    with open_exporter(tracking_uri=scripted_server.url, experiment="agents") as exporter:
        assert "/experiments/3/" in str(exporter.trace_url(255, check=False))
    with open_exporter("http://127.0.0.1:9/other/path", experiment_id="7") as exporter:
        assert exporter.trace_url(255, check=False) is None
    with open_exporter(tracking_uri="http://127.0.0.1:9", experiment="agents") as exporter:
        assert exporter.trace_url(255, check=False) is None


def test_trace_url_of_a_stored_trace_names_the_experiment_that_has_it(scripted_server: ScriptedServer) -> None:
    trace = "tr-" + "0" * 30 + "ff"
    info = {"trace_id": trace, "trace_location": {"mlflow_experiment": {"experiment_id": "8"}}}
    body = json.dumps({"trace": {"trace_info": info}}).encode()
    scripted_server.answer(Answer(200, headers=JSON, body=body), path=f"/api/3.0/mlflow/traces/{trace}")
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="7") as exporter:
        assert "/experiments/8/" in str(exporter.trace_url(255))


def test_trace_url_of_a_trace_that_is_not_stored_is_none_and_logs_the_reason_once(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer_with(
        "/api/3.0/mlflow/traces/tr-" + "0" * 30 + "ff",
        lambda _: Answer(
            404,
            headers=JSON,
            body=b'{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"Trace with ID \'tr-00\' not found."}',
        ),
    )
    with open_exporter(tracking_uri=scripted_server.url, experiment_id="7") as exporter:
        assert exporter.trace_url(255) is None
        assert exporter.trace_url(255) is None
    (message,) = caplog.messages
    assert message.startswith("trace_url() returns None: MLflow does not have the trace yet; flush() sends its spans")


def test_trace_url_without_a_server_says_that_it_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    with open_exporter(tracking_uri="http://127.0.0.1:9", experiment_id="7") as exporter:
        assert exporter.trace_url(255) is None
    assert "trace_url() returns None: 127.0.0.1:9 refuses connections" in caplog.text


def test_created_experiment_is_logged(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def answer(request: RecordedRequest) -> Answer:
        assert request.method == "GET"
        return experiment_response("3")

    scripted_server.answer_with(GET_BY_NAME, answer)
    with open_exporter(tracking_uri=scripted_server.url) as exporter:
        exporter.export(make_spans("a"))
    assert "traces go to experiment 'bot' (id 3), named after service.name" in caplog.text


@pytest.mark.parametrize("kind", INTERRUPTIONS)
@pytest.mark.parametrize("method", ["export", "force_flush"])
def test_interrupted_wait_raises_and_loses_nothing(
    scripted_server: ScriptedServer, method: str, kind: type[BaseException]
) -> None:
    release = threading.Event()
    scripted_server.answer(Answer(hold=release))
    with open_exporter(tracking_uri=scripted_server.url, experiment_id=1, timeout=20) as exporter:
        pipeline = pipeline_of(exporter)
        assert pipeline is not None
        pipeline._changed = InterruptedCondition(raise_error(kind()))
        if method == "force_flush":
            pipeline.submit(make_spans("a"), 100)
        with pytest.raises(kind):
            exporter.force_flush() if method == "force_flush" else exporter.export(make_spans("a"))
        release.set()
        assert exporter.force_flush()
        assert exporter.export(make_spans("b")) is SUCCESS
        assert exporter.stats() == Stats(delivered=2, requests=2)
        assert (pipeline.in_flight_span_count, pipeline.in_flight_byte_count) == (0, 0)
        assert pipeline._flush_deadline == math.inf


def test_shutdown_interrupted_at_the_end_of_the_process_closes_all_and_raises_nothing(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=1)
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    closed: list[str] = []
    monkeypatch.setattr(pipeline.work_queue, "close", lambda _: raise_error(KeyboardInterrupt())())
    monkeypatch.setattr(pipeline, "_close_clients", lambda _: closed.append("clients"))
    monkeypatch.setattr(process_end, "is_ending", lambda: True)
    exporter.shutdown()
    assert closed == ["clients"]
