"""docs/monitoring.md, the alerts and the dashboard name the metrics that applications and the gateway report."""

import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from mlflow_otlp_exporter import MLflowSpanExporter, Stats
from mlflow_otlp_exporter._internal.gateway.protocol import AnswerKind
from support.documents import blocks
from support.environments import ROOT
from support.gateway import GatewayProcess
from support.otlp_bodies import encode_spans
from support.scripted_server import Answer, ScriptedServer
from support.spans import make_spans

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
MONITORING = ROOT / "examples" / "monitoring"
ROWS = re.findall(r"^\| `([\w.]+)` \| `(\w+)` \| ([^|]+) \|([^|]*)\|", PAGE, re.MULTILINE)
GATEWAY_ROWS = re.findall(r"^\| `(mlflow_otlp_gateway_\w+)`", (ROOT / "docs" / "gateway.md").read_text(), re.MULTILINE)
TYPES = {"Sum": "counter", "Gauge": "gauge", "Histogram": "histogram"}
_NAME = re.compile(r"\b(?:mlflow_otlp|otel_sdk)_\w+")


def to_prometheus(metric: otel.Metric) -> str:
    """Translate a name as OpenTelemetry's specification for Prometheus says."""
    name = metric.name.replace(".", "_") + {"s": "_seconds", "By": "_bytes"}.get(metric.unit or "", "")
    return f"{name}_total" if isinstance(metric.data, otel.Sum) and metric.data.is_monotonic else name


def metrics_of(reader: otel.InMemoryMetricReader) -> Iterator[otel.Metric]:
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            yield from scope.metrics


@pytest.fixture(name="reported", scope="module")
def report_all_metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, otel.Metric]:
    """Metrics of an exporter that has delivered, dropped and spooled spans, by their names for Prometheus."""
    reader, server = otel.InMemoryMetricReader(), ScriptedServer()
    with pytest.MonkeyPatch.context() as patch, server, MeterProviderContext(reader) as meter_provider:
        patch.setenv("MLFLOW_OTLP_METRICS", "true")
        exporter = MLflowSpanExporter(
            server.traces_url,
            experiment_id=1,
            timeout=1,
            meter_provider=meter_provider,
            spool=True,
            spool_dir=tmp_path_factory.mktemp("spool"),
        )
        server.answer(then=Answer(422, headers={"Content-Type": "application/json"}, body=b"{}"))
        exporter.export(make_spans("dropped"))
        exporter.force_flush()
        server.answer(then=Answer(503))
        exporter.export(make_spans("queued"))
        metrics = {to_prometheus(metric): metric for metric in metrics_of(reader)}
        exporter.shutdown(1)
    return metrics


class MeterProviderContext(MeterProvider):
    def __init__(self, reader: otel.MetricReader) -> None:
        super().__init__([reader])

    def __enter__(self) -> "MeterProviderContext":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def test_page_lists_every_metric_with_type_unit_and_attributes(reported: dict[str, otel.Metric]) -> None:
    assert {row[1] for row in ROWS} == reported.keys()
    for name, translated, kind, attributes in ROWS:
        metric = reported[translated]
        monotonic = not isinstance(metric.data, otel.Sum) or metric.data.is_monotonic
        expected = TYPES[type(metric.data).__name__] if monotonic else "up-down counter"
        assert (metric.name, f"{expected}, `{metric.unit}`") == (name, kind)
        for point in metric.data.data_points:
            assert point.attributes is not None
            own = {key for key in point.attributes if not key.startswith(("otel.", "server."))}
            assert own <= set(re.findall(r"`([\w.]+)`", attributes))


def test_page_lists_every_field_of_stats() -> None:
    description = inspect.getdoc(Stats)
    assert description is not None
    for field in Stats._fields:
        (text,) = re.findall(rf"^    {field}: (.*?)(?=^    \w+: |\Z)", description, re.MULTILINE | re.DOTALL)
        assert f"| `{field}` | {' '.join(text.split())} |" in PAGE


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_alerts_are_complete_and_described_on_the_page() -> None:
    rules = read_rules()
    assert len(rules) >= 3
    for rule in rules:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert re.findall(r"^\| `(Mlflow\w+)`", PAGE, re.MULTILINE) == [rule["alert"] for rule in rules]


def test_commands_on_the_page_make_a_prometheus_rule_of_the_alerts(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "monitoring.md", "sh")
    commands = [line for line in block.code.splitlines() if not line.startswith("kubectl ")]
    (tmp_path / "alerts.yaml").write_text((MONITORING / "alerts.yaml").read_text())
    subprocess.run(["sh", "-euc", "\n".join(commands)], cwd=tmp_path, check=True)
    rule = yaml.safe_load((tmp_path / "rule.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert [item for group in rule["spec"]["groups"] for item in group["rules"]] == read_rules()


def test_scrape_configuration_on_the_page_finds_the_gateways_of_the_manifest() -> None:
    (block,) = blocks(ROOT / "docs" / "monitoring.md", "yaml")
    configuration = yaml.safe_load(block.code)
    assert configuration["rule_files"] == ["alerts.yaml"]
    (names,) = configuration["scrape_configs"][0]["dns_sd_configs"]
    service = next(yaml.safe_load_all((ROOT / "examples" / "gateway" / "gateway.yaml").read_text()))
    metadata = service["metadata"]
    assert names["names"] == [f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local"]
    assert names["port"] in {port["port"] for port in service["spec"]["ports"] if port["name"] == "otlp-http"}


def test_alerts_of_the_gateway_name_its_answers_and_its_job() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in read_rules()}
    answers = (AnswerKind.UNAUTHENTICATED, AnswerKind.DENIED)
    statuses = {status for kind in answers for status in (str(kind.http_status), kind.grpc_status)}
    for text in re.findall(r'status=~"([^"]+)"', rules["MlflowGatewayRejectsClients"]):
        assert set(text.split("|")) == statuses
    reasons = re.findall(r'reason="([^"]+)"', rules["MlflowGatewayDeniesSpans"])
    assert reasons == ["denied", "denied"]
    (job,) = re.findall(r'job="([^"]+)"', rules["MlflowGatewayAbsent"])
    service = next(yaml.safe_load_all((ROOT / "examples" / "gateway" / "gateway.yaml").read_text()))
    (block,) = blocks(ROOT / "docs" / "monitoring.md", "yaml")
    assert job == service["metadata"]["name"] == yaml.safe_load(block.code)["scrape_configs"][0]["job_name"]


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_expressions_use_names_of_reported_metrics(file: str, reported: dict[str, otel.Metric]) -> None:
    if file == "alerts.yaml":
        expressions = [rule["expr"] for rule in read_rules()]
    else:
        panels = json.loads((MONITORING / file).read_text())["panels"]
        expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    names = {name for expression in expressions for name in _NAME.findall(expression)}
    assert names
    assert {name.removesuffix("_bucket") for name in names} <= reported.keys() | set(GATEWAY_ROWS)
    if file == "dashboard.json":
        assert len(names) == len(reported.keys() | set(GATEWAY_ROWS)), "the dashboard shows every metric"


def test_dashboard_has_a_data_source_to_choose_and_panels_that_do_not_overlap() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(positions)) == len(positions)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(positions)
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"${datasource}"}


def test_gateway_reports_the_metrics_of_applications_and_its_own(
    scripted_server: ScriptedServer, tmp_path: Path, reported: dict[str, otel.Metric]
) -> None:
    environment = {"MLFLOW_OTLP_LINGER": "0.1"}
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment-id", "1"], environment) as gateway:
        assert gateway.post(encode_spans(make_spans("one"))).status == 200
        names: set[str] = set()
        while "otel_sdk_exporter_span_exported_total" not in names:  # counted last
            names = {name.partition("{")[0] for name in gateway.metrics()}
    suffixes = re.compile(r"_(bucket|count|sum)$")
    # Counters and gauges that have no value before there is a failure.
    quiet = {
        "mlflow_otlp_span_dropped_total",
        "mlflow_otlp_destination_failing",
        "mlflow_otlp_gateway_span_rejected_total",
    }
    assert {suffixes.sub("", name) for name in names} | quiet == reported.keys() | set(GATEWAY_ROWS)


def test_metric_reader_makes_no_spans_of_its_own_requests(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the application traces `requests`, which the metric exporter uses."""
    monkeypatch.setenv("MLFLOW_OTLP_METRICS", "true")
    metric_exporter = OTLPMetricExporter(f"{scripted_server.url}/v1/metrics", timeout=5)
    reader = otel.PeriodicExportingMetricReader(metric_exporter, export_interval_millis=1e9)
    with MeterProviderContext(reader) as meter_provider:
        exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id=1, meter_provider=meter_provider)
        tracer_provider = TracerProvider()
        tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        RequestsInstrumentor().instrument(tracer_provider=tracer_provider)
        try:
            assert meter_provider.force_flush()
        finally:
            RequestsInstrumentor().uninstrument()
            tracer_provider.shutdown()
    assert b"mlflow_otlp.request.sent" in b"".join(request.content for request in scripted_server.to("/v1/metrics"))
    assert scripted_server.to("/v1/traces") == []
    assert exporter.stats() == Stats()
