"""Exporter metrics, as the SDK exports them."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import MeterProvider as AnyProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.exporter_metrics import ExporterMetrics
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from support.children import run_in_fork
from support.scripted_server import ACCEPTED, Answer, ScriptedServer
from support.spans import make_spans
from support.traces import make_traces

EXPORTED, INFLIGHT = "otel.sdk.exporter.span.exported", "otel.sdk.exporter.span.inflight"
DURATION = "otel.sdk.exporter.operation.duration"
AWAY = "http://127.0.0.1:1/v1/traces"
JSON = {"Content-Type": "application/json"}


class Meters:
    """A meter provider and its recorded metrics."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        metrics = [metric for resource in resources for scope in resource.scope_metrics for metric in scope.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]

    def spans(self, name: str) -> dict[str, int]:
        """Spans by error type, "" for none."""
        return {str(point.attributes.get("error.type", "")): point.value for point in self.points(name)}


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meters]:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    meters = Meters()
    yield meters
    meters.provider.shutdown()


def test_metrics_of_delivered_spans(scripted_server: ScriptedServer, meters: Meters) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider)
    started_at = time.monotonic()
    exporter.export(make_traces(2, children=1))
    exporter.export(make_spans("root"))
    exporter.shutdown()
    elapsed = time.monotonic() - started_at
    (exported,) = meters.points(EXPORTED)
    assert exported.value == 5
    port = int(scripted_server.url.rpartition(":")[2])
    name = exported.attributes["otel.component.name"]
    assert str(name).startswith("mlflow_span_exporter/")
    assert exported.attributes == {
        "otel.component.type": "otlp_http_span_exporter",
        "otel.component.name": name,
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    (duration,) = meters.points(DURATION)
    assert isinstance(duration, HistogramDataPoint)
    assert (duration.count, duration.attributes) == (2, exported.attributes)
    assert 0 < duration.sum <= elapsed
    assert meters.spans(INFLIGHT) == {"": 0}


def test_metrics_of_rejected_spans(scripted_server: ScriptedServer, meters: Meters) -> None:
    statuses = []

    def answer(request: Any) -> Answer:
        is_bad = any(span.name == "child 1.1" for span in request.spans())
        statuses.append(422 if is_bad else 200)
        return Answer(422, headers=JSON, body=b"{}") if is_bad else ACCEPTED

    scripted_server.answer_with("/v1/traces", answer)
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider)
    exporter.export(make_traces(2, children=1))
    exporter.shutdown()
    assert meters.spans(EXPORTED) == {"": 3, "422": 1}
    durations = {point.attributes.get("error.type"): point for point in meters.points(DURATION)}
    counts = {kind: point.count for kind, point in durations.items()}
    assert counts == {"422": statuses.count(422), None: statuses.count(200)}
    assert durations["422"].attributes["http.response.status_code"] == 422
    assert meters.spans(INFLIGHT) == {"": 0}


def test_metrics_of_spans_in_flight_and_dropped_at_shutdown(scripted_server: ScriptedServer, meters: Meters) -> None:
    scripted_server.answer(Answer(503))
    exporter = MLflowSpanExporter(
        scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider, timeout=1
    )
    exporter.export(make_traces(1, children=1))
    assert meters.spans(INFLIGHT) == {"": 2}
    assert meters.spans(EXPORTED) == {}
    (duration,) = meters.points(DURATION)  # known while the outage lasts
    assert (duration.attributes["error.type"], duration.attributes["http.response.status_code"]) == ("503", 503)
    exporter.shutdown()
    assert meters.spans(INFLIGHT) == {"": 0}
    assert meters.spans(EXPORTED) == {"shutdown": 2}


@pytest.mark.parametrize(
    ("outcome", "attributes"),
    [
        (
            ExportOutcome(Disposition.PARTIAL_SUCCESS, FailureKind.CONTENT, status=200, rejected_count=1),
            {"error.type": "partial_success"},
        ),
        (
            ExportOutcome(Disposition.PERMANENT, FailureKind.CONTENT, status=400),
            {"error.type": "400", "http.response.status_code": 400},
        ),
        (ExportOutcome(Disposition.RETRYABLE, FailureKind.SERVER), {"error.type": "no_answer"}),
        (ExportOutcome(Disposition.RETRYABLE, FailureKind.CREDENTIALS, lookup_status=401), {"error.type": "401"}),
        (
            ExportOutcome(Disposition.RETRYABLE, FailureKind.DESTINATION, code=MessageCode.EXPERIMENT_NOT_FOUND),
            {"error.type": "experiment_not_found"},
        ),
        (None, {"error.type": "shutdown"}),
    ],
)
def test_metrics_name_error_type_of_outcome(
    outcome: ExportOutcome | None, attributes: Mapping[str, Any], meters: Meters
) -> None:
    metrics = ExporterMetrics(meters.provider, "https://mlflow.example/v1/traces")
    on_counted = metrics.record_start(3)
    on_counted(2, 0, None)
    on_counted(0, 1, outcome.error_type if outcome is not None else None)
    if outcome is not None:
        metrics.record_request(2.5, outcome.error_type, outcome.status)
        (duration,) = meters.points(DURATION)
        assert duration.sum == 2.5
        assert attributes.items() <= dict(duration.attributes).items()
        assert duration.attributes["server.port"] == 443
    assert meters.spans(EXPORTED) == {"": 2, attributes["error.type"]: 1}


def test_metrics_of_spans_dropped_before_sending(
    scripted_server: ScriptedServer, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    def unencodable(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("mlflow_otlp_exporter._internal.encoding.span_encoder.SpanEncoder.encode", raise_error)

    def no_memory(patch: pytest.MonkeyPatch) -> None:
        patch.setenv("MLFLOW_OTLP_BUFFER_BYTES", "1")

    for prepare, error in ((unencodable, "encoding"), (no_memory, "memory_limit")):
        with monkeypatch.context() as patch:
            prepare(patch)
            exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider)
            exporter.export(make_spans("root"))
            exporter.shutdown()
        assert meters.spans(EXPORTED)[error] == 1
    assert meters.points(INFLIGHT) == []


def test_metrics_use_global_provider_if_enabled_by_environment(
    scripted_server: ScriptedServer, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.common.instruments.get_meter_provider", lambda: meters.provider)
    monkeypatch.delenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
    variables = ("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "MLFLOW_OTLP_METRICS")
    cases = [
        (name, value, is_on) for name in variables for value, is_on in (("", False), ("false", False), (" True", True))
    ]
    for name, value, is_on in cases:
        count = len(meters.points(EXPORTED))
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1)
        exporter.export(make_spans("root"))
        exporter.shutdown()
        assert len(meters.points(EXPORTED)) == count + is_on


def test_metrics_with_own_provider_need_environment(
    scripted_server: ScriptedServer, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider)
    exporter.export(make_spans("root"))
    exporter.shutdown()
    assert meters.spans(EXPORTED) == {}


def test_broken_meter_provider_drops_no_span(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")

    class Instrument:
        def add(self, *_: Any) -> None:
            raise RuntimeError("broken")

        record = add

    class Meter:
        def create(self, *_: Any) -> Instrument:
            return Instrument()

        create_counter = create_up_down_counter = create_histogram = create

    provider: Any = type("Provider", (AnyProvider,), {"get_meter": lambda *_: Meter()})()
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=provider)
    exporter.export(make_spans("root"))
    exporter.shutdown()
    assert exporter.stats().delivered == 1


def values(meters: Meters, name: str, attribute: str = "") -> dict[str, float]:
    return {str(point.attributes.get(attribute, "")): point.value for point in meters.points(f"mlflow_otlp.{name}")}


def test_own_metrics_tell_what_waits_on_disk_and_which_destinations_fail(
    scripted_server: ScriptedServer, meters: Meters, tmp_path: Path
) -> None:
    scripted_server.answer(then=Answer(503))
    exporter = MLflowSpanExporter(
        scripted_server.traces_url,
        experiment_id=7,
        meter_provider=meters.provider,
        timeout=1,
        spool_dir=tmp_path,
        spool=True,
    )
    assert values(meters, "spool.age") == {"": 0}
    exporter.export(make_traces(1, children=1))
    exporter.force_flush(0)
    while not values(meters, "spool.spans")[""]:
        pass
    assert values(meters, "spool.spans") == {"": 2}
    assert values(meters, "span.spooled") == {"": 2}
    assert values(meters, "spool.size")[""] > 100
    assert 0 < values(meters, "spool.age")[""] < 60
    assert values(meters, "destination.failing", "destination") == {"/7": 1}
    assert values(meters, "destination.failing", "error.type") == {"503": 1}
    scripted_server.answer(then=ACCEPTED)
    assert exporter.force_flush()
    assert values(meters, "span.delivered") == {"": 2}
    assert values(meters, "destination.failing") == {}
    requests, retries = values(meters, "request.sent")[""], values(meters, "request.retried")[""]
    assert (requests, retries) == (exporter.stats().requests, exporter.stats().retries)
    assert 0 < retries < requests
    exporter.shutdown()
    assert values(meters, "spool.spans") == {"": 0}


def test_own_metrics_count_drops_by_reason_as_stats_do(
    scripted_server: ScriptedServer, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_server.answer(then=Answer(422, headers=JSON, body=b"{}"))
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider)
    exporter.export(make_spans("rejected"))
    exporter.force_flush()
    scripted_server.answer(then=Answer(503))
    exporter.export(make_spans("late"))
    exporter.shutdown(1)
    assert values(meters, "span.dropped", "reason") == {"422": 1, "shutdown": 1}
    assert sum(values(meters, "span.dropped", "reason").values()) == exporter.stats().dropped


def test_failed_look_ups_of_the_experiment_are_no_retries(scripted_server: ScriptedServer, meters: Meters) -> None:
    scripted_server.answer_with("/api/2.0/mlflow/experiments/get-by-name", lambda _: Answer(503))
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment="bots", timeout=1)
    exporter.export(make_spans("root"))
    exporter.force_flush(500)
    exporter.shutdown(1)
    assert (exporter.stats().requests, exporter.stats().retries) == (0, 0)


def test_own_metrics_of_many_destinations_have_few_attributes(scripted_server: ScriptedServer, meters: Meters) -> None:
    scripted_server.answer(then=Answer(503))
    exporter = MLflowSpanExporter(scripted_server.traces_url, meter_provider=meters.provider, timeout=1)
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    outcome = ExportOutcome(Disposition.RETRYABLE, FailureKind.SERVER, status=503)
    for number in range(100):
        destination = Destination(experiment_id=str(number))
        pipeline.retry_sender.backoff.record_failure(destination, outcome, retry_after=None, needs_user=False)
    failing = values(meters, "destination.failing", "destination")
    assert (len(failing), failing["other"], sum(failing.values())) == (21, 80, 100)
    exporter.shutdown(1)


def test_reader_of_metrics_waits_for_no_disk_and_no_lock(meters: Meters, tmp_path: Path) -> None:
    exporter = MLflowSpanExporter(AWAY, experiment_id=1, meter_provider=meters.provider, spool=True, spool_dir=tmp_path)
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    assert pipeline.persistent_queue is not None
    storage, answers = pipeline.persistent_queue.storage, list[dict[str, float]]()
    with storage._lock:  # as a thread that writes to a slow disk has it
        reader = threading.Thread(target=lambda: answers.append(values(meters, "spool.spans")))
        reader.start()
        reader.join(10)
    assert answers == [{"": 0}]
    exporter.shutdown(1)


def test_metrics_do_not_keep_an_exporter_alive(meters: Meters) -> None:
    exporters = [MLflowSpanExporter(AWAY, experiment_id=number, meter_provider=meters.provider) for number in range(2)]
    names = {point.attributes["otel.component.name"] for point in meters.points("mlflow_otlp.request.sent")}
    assert len(names) == 2
    references = [weakref.ref(pipeline_of(exporter)) for exporter in exporters]
    for exporter in exporters:
        exporter.shutdown(1)
    del exporter
    exporters.clear()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert meters.points("mlflow_otlp.request.sent") == []


def test_metrics_of_a_forked_child_start_at_zero(scripted_server: ScriptedServer, meters: Meters) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meters.provider)
    exporter.export(make_spans("root"))
    assert values(meters, "span.delivered") == {"": 1}

    def read_in_child() -> bool:
        first = values(meters, "span.delivered")
        exporter.export(make_spans("child"))
        return (first, values(meters, "span.delivered")) == ({"": 0}, {"": 1})

    assert run_in_fork(read_in_child)
    assert values(meters, "span.delivered") == {"": 1}
    exporter.shutdown()
