"""Traces through OpenTelemetry's Collector, with the shipped configurations, to a real MLflow."""

import re
import shutil
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, configure
from mlflow_otlp_exporter._internal.cli.main import COLLECTOR_CONFIGS
from support.certificates import Authority
from support.collector import Collector
from support.environments import ROOT
from support.grpc_client import send_span_over_grpc
from support.kubernetes import rotate, service_account
from support.markers import SECRET
from support.mlflow_server import MLflowServer
from support.nginx import Nginx
from support.scripted_server import ACCEPTED, Answer, ScriptedServer
from support.spans import make_spans
from support.traces import wait_until

# The first test builds the Collector, once for each version of its sources.
pytestmark = pytest.mark.needs("go")

TENANTS = ("team-a", "team-b")
BY_HEADERS = ("per-tenant", "operator")
TO_MLFLOW = [name for name in COLLECTOR_CONFIGS if name != "gateway"]
# Requests without this Authorization are rejected, and all are logged with theirs.
GUARD = """
if ($http_authorization != "{authorization}") { return 401; }
location / { proxy_pass {upstream}; }
"""
QUICK_RETRIES = {"exporters": {"otlp_http/mlflow": {"retry_on_failure": {"max_interval": "1s"}}}}
BASIC = "Basic YWRhOnBsYW50ZWQtc2VjcmV0"  # ada:planted-secret


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server of this module, because a test stops it."""
    server = MLflowServer.start(tmp_path_factory.mktemp("behind-a-collector"), workspaces=True)
    for name in TENANTS:
        server.create_workspace(name)
    yield server
    server.stop()


def guard(authorization: str) -> str:
    return GUARD.replace("{authorization}", authorization)


def collector_variables(uri: str, experiment_id: str = "", workspace: str = "") -> dict[str, str]:
    variables = {"MLFLOW_TRACKING_URI": uri}
    if experiment_id:
        variables |= {"MLFLOW_EXPERIMENT_ID": experiment_id, "MLFLOW_WORKSPACE": workspace}
    return variables


def wait_for_names(server: MLflowServer, experiment_id: str, workspace: str, count: int) -> list[str]:
    """Wait for `count` traces in an experiment, and return the sorted names of their spans."""
    wait_until(lambda: len(server.search_traces(experiment_id, workspace)) >= count, 60, f"{count} traces")
    traces = [server.trace(trace["trace_id"], workspace) for trace in server.search_traces(experiment_id, workspace)]
    return sorted(span["name"] for trace in traces if trace for span in trace["spans"])


def send_trace(endpoint: str, name: str, **arguments: Any) -> None:
    """Send a trace of three spans with this library."""
    provider = TracerProvider(resource=Resource({"service.name": "agent"}), shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(f"{endpoint}/v1/traces", **arguments)))
    tracer = provider.get_tracer("tests")
    with tracer.start_as_current_span(name):
        for number in (1, 2):
            tracer.start_span(f"{name} {number}").end()
    provider.shutdown()


def assert_log_without_warnings(collector: Collector) -> None:
    """A deprecated name, for example, is a warning."""
    lines = collector.log.read_text().splitlines()
    assert [line for line in lines if "\twarn\t" in line or "\terror\t" in line] == []


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("name", TO_MLFLOW)
def test_shipped_configuration_delivers_each_span_once_to_its_destination(
    name: str, server: MLflowServer, tmp_path: Path
) -> None:
    """With a token in a file, user and password, or no credential; nginx checks them and counts the requests."""
    token = tmp_path / "token"
    token.write_text(SECRET)
    authorization = {"fixed-basic-auth": BASIC, "fixed-no-auth": ""}.get(name, f"Bearer {SECRET}")
    with Nginx(tmp_path / "nginx", guard(authorization), server.uri) as nginx:
        credentials = {
            "fixed-basic-auth": {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": SECRET},
            "fixed-no-auth": {},
        }.get(name, {"MLFLOW_TRACKING_TOKEN_FILE": str(token)})
        numbers = {tenant: server.create_experiment(f"by {name}", tenant) for tenant in TENANTS}
        tenants = TENANTS if name in BY_HEADERS else TENANTS[:1]
        fixed = {} if name in BY_HEADERS else {"experiment_id": numbers["team-a"], "workspace": "team-a"}
        variables = {**collector_variables(nginx.uri, **fixed), **credentials}
        with Collector(tmp_path / "collector", name, variables) as collector:
            for tenant in tenants:
                number = numbers[tenant]
                send_trace(collector.http, f"ours of {tenant}", experiment_id=number, workspace=tenant)
                headers = (f"x-mlflow-experiment-id={number}", f"x-mlflow-workspace={tenant}")
                send_span_over_grpc(collector.grpc, f"stock of {tenant}", *headers)
            for tenant in tenants:
                assert wait_for_names(server, numbers[tenant], tenant, 2) == [
                    f"ours of {tenant}",
                    f"ours of {tenant} 1",
                    f"ours of {tenant} 2",
                    f"stock of {tenant}",
                ]
            wait_until(lambda: collector.metric("otelcol_exporter_sent_spans") == 4 * len(tenants))
            assert collector.metric("otelcol_receiver_accepted_spans") == 4 * len(tenants)
            assert_log_without_warnings(collector)
        # The Collector merges the two requests of a tenant if both arrive before its batch is sent.
        request_counts = range(len(tenants), 2 * len(tenants) + 1)
        wait_until(lambda: nginx.counts()[200] in request_counts, what="all answers in the access log")
        assert set(nginx.counts()) == {200}


def test_tls_of_the_example_protects_both_receivers(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate = authority.certificate("collector")
    text = (ROOT / "examples" / "collector" / "tls.yaml").read_text()
    for path, file in (("tls.crt", certificate.file), ("tls.key", certificate.key), ("ca.crt", authority.file)):
        text = text.replace(f"/etc/otelcol/tls/{path}", str(file))
    with ScriptedServer() as mlflow:
        mlflow.answer(then=ACCEPTED)
        variables = collector_variables(mlflow.url, "1")
        with Collector(tmp_path / "collector", "fixed-no-auth", variables, yaml.safe_load(text)) as collector:
            address = collector.http.replace("http:", "https:")
            send_trace(address, "over TLS", experiment_id="1", certificate_file=str(authority.file))
            names = {span.name for request in mlflow.wait_for(1) for span in request.spans()}
            assert "over TLS" in names
            for url in (collector.http, collector.grpc):
                port = int(url.rpartition(":")[2])
                assert ssl.get_server_certificate(("127.0.0.1", port), ca_certs=str(authority.file))
        # With the comments, clients need a certificate of their own.
        mutual = yaml.safe_load(text.replace("# client_ca_file", "client_ca_file"))
        protocols = mutual["receivers"]["otlp"]["protocols"].values()
        assert [protocol["tls"]["client_ca_file"] for protocol in protocols] == [str(authority.file)] * 2
        with Collector(tmp_path / "mutual", "fixed-no-auth", variables, mutual) as collector:
            address = collector.http.replace("http:", "https:")
            exporter = MLflowSpanExporter(
                f"{address}/v1/traces", certificate_file=str(authority.file), experiment_id="1", timeout=2
            )
            assert exporter.export(make_spans("without a certificate")) is SpanExportResult.FAILURE
            exporter.shutdown()


def test_metrics_of_the_example_have_the_names_of_the_alerts(tmp_path: Path) -> None:
    changes = yaml.safe_load((ROOT / "examples" / "collector" / "metrics.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    exporter = changes["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
    assert (exporter["host"], exporter["port"]) == ("0.0.0.0", 8888)
    exporter |= {"host": "127.0.0.1", "port": port}
    with ScriptedServer() as mlflow:
        mlflow.answer(then=Answer(401))
        variables = collector_variables(mlflow.url, "1")
        with Collector(tmp_path / "collector", "fixed-no-auth", variables, changes) as collector:
            send_trace(collector.http, "dropped", experiment_id="1")
            mlflow.wait_for(1)

            def read_names() -> set[str]:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                    text = response.read().decode()
                return set(re.findall(r"^(otelcol_\w+)\{[^}]*exporter=\".+/mlflow\"", text, re.MULTILINE))

            wait_until(lambda: "otelcol_exporter_send_failed_spans" in read_names())
            assert {"otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"} <= read_names()
    alerts = (ROOT / "examples" / "monitoring" / "alerts.yaml").read_text()
    names = set(re.findall(r"\botelcol_\w+", alerts)) - {"otelcol_exporter_"}
    assert names == {
        "otelcol_exporter_send_failed_spans",
        "otelcol_exporter_enqueue_failed_spans",  # with a full queue only
        "otelcol_exporter_queue_size",
        "otelcol_exporter_queue_capacity",
    }
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert not [name for name in names if f"`{name}`" not in page]


@pytest.mark.needs("nginx")
def test_rotated_token_of_a_service_account_is_used_and_spans_until_then_are_lost(
    server: MLflowServer, tmp_path: Path
) -> None:
    folder, renewed = service_account(tmp_path / "account", SECRET, "team-a"), f"{SECRET}-renewed"
    number = server.create_experiment("rotation", "team-a")
    with Nginx(tmp_path / "nginx", guard(f"Bearer {renewed}"), server.uri) as nginx:
        variables = collector_variables(nginx.uri, number, "team-a")
        variables["MLFLOW_TRACKING_TOKEN_FILE"] = str(folder / "token")
        with Collector(tmp_path / "collector", "fixed", variables) as collector:
            send_trace(collector.http, "expired")
            wait_until(lambda: collector.metric("otelcol_exporter_send_failed_spans") == 3)
            refreshed = collector.log.read_text().count("refresh token")
            replaced = (folder / "token").resolve().parent
            rotate(folder, renewed, "team-a")
            shutil.rmtree(replaced)  # as the kubelet does, and what the Collector notices
            wait_until(lambda: collector.log.read_text().count("refresh token") > refreshed)
            send_trace(collector.http, "renewed")
            assert wait_for_names(server, number, "team-a", 1) == ["renewed", "renewed 1", "renewed 2"]
        wait_until(lambda: len(nginx.statuses()) == 2, what="all answers in the access log")
        assert nginx.counts() == {401: 1, 200: 1}


def test_collector_that_samples_whole_traces_and_changes_spans_delivers_the_sampled_traces(
    server: MLflowServer, tmp_path: Path
) -> None:
    """Sampled are traces with an error in any span."""
    number = server.create_experiment("sampled", "team-a")
    processors = {
        "groupbytrace": {"wait_duration": "1s"},
        "tail_sampling": {
            "decision_wait": "1s",
            "policies": [{"name": "errors", "type": "status_code", "status_code": {"status_codes": ["ERROR"]}}],
        },
        "attributes": {"actions": [{"key": "secret", "action": "delete"}]},
        "transform": {"trace_statements": ['set(span.attributes["changed"], "by the Collector")']},
        "resource": {"attributes": [{"key": "deployment.environment", "value": "test", "action": "upsert"}]},
    }
    pipeline = {"processors": ["memory_limiter", *processors]}
    changes = {"processors": processors, "service": {"pipelines": {"traces/mlflow": pipeline}}}
    variables = collector_variables(server.uri, number, "team-a")
    with Collector(tmp_path, "fixed-no-auth", variables, changes) as collector:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(f"{collector.http}/v1/traces")))
        tracer = provider.get_tracer("tests")
        for name, status in (("fails", StatusCode.ERROR), ("works", StatusCode.OK)):
            with tracer.start_as_current_span(name, attributes={"secret": SECRET}):
                tracer.start_span(f"child of {name}").end()
                with tracer.start_as_current_span(f"step of {name}") as step:
                    step.set_status(status)
        provider.shutdown()
        wait_until(lambda: collector.metric("otelcol_processor_tail_sampling_global_count_traces_sampled") == 2)
        names = wait_for_names(server, number, "team-a", 1)
        assert names == ["child of fails", "fails", "step of fails"]
        assert_log_without_warnings(collector)
    (info,) = server.search_traces(number, "team-a")
    trace = server.trace(info["trace_id"], "team-a")
    assert trace is not None
    (root,) = [span for span in trace["spans"] if span["name"] == "fails"]
    attributes = {attribute["key"] for attribute in root["attributes"]}
    assert "changed" in attributes
    assert "secret" not in attributes


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["fixed-no-auth", "per-tenant"])
def test_queue_on_disk_survives_outage_of_mlflow_and_kill_of_the_collector(
    name: str, server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = server.create_experiment(f"down with {name}", "team-a")
    fixed = {} if name in BY_HEADERS else {"experiment_id": number, "workspace": "team-a"}
    variables = {**collector_variables(server.uri, **fixed), "MLFLOW_TRACKING_TOKEN": SECRET}
    client_secret = "planted-secret-of-a-client"
    requests = server.count_requests()
    with Collector(tmp_path / "collector", name, variables, QUICK_RETRIES) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        provider = TracerProvider(shutdown_on_exit=False)
        telemetry = configure(
            workspace="team-a", tracer_provider=provider, headers={"Authorization": f"Bearer {client_secret}"}
        )
        server.kill()
        for index in range(20):
            provider.get_tracer("tests").start_span(f"while down {index:02}").end()
        assert telemetry.flush().delivered == 20  # to the Collector, which queues them
        if name in BY_HEADERS:  # whose processor `batch` confirms spans 200 ms before they are on disk
            wait_until(lambda: collector.log.read_text().count("Exporting failed. Will retry") > 0)
        collector.kill()
        stored = b"".join(path.read_bytes() for path in (tmp_path / "collector" / "queue").iterdir())
        assert b"while down 00" in stored
        assert client_secret.encode() not in stored
        collector.start()
        headers = (f"x-mlflow-experiment-id={number}", "x-mlflow-workspace=team-a")
        send_span_over_grpc(collector.grpc, "stock while down", *headers)
        server.restart()
        assert wait_for_names(server, number, "team-a", 21) == [
            "stock while down",
            *(f"while down {index:02}" for index in range(20)),
        ]
        wait_until(lambda: collector.metric("otelcol_exporter_queue_size") == 0)
        telemetry.shutdown()
        provider.shutdown()
    statuses = server.statuses()[requests:]
    assert set(statuses) == {200}
    assert len(statuses) <= 3


PARTIAL_SUCCESS = ExportTraceServiceResponse()
PARTIAL_SUCCESS.partial_success.rejected_spans = 1
PROTOBUF = {"Content-Type": "application/x-protobuf"}
ANSWERS = {
    **{str(status): (Answer(status), "dropped") for status in (302, 400, 401, 403, 404, 408, 413, 422, 500, 501)},
    **{str(status): (Answer(status), "retried") for status in (429, 502, 503, 504)},
    "no answer": (Answer(close="after-request"), "retried"),
    "200 of MLflow 3.6": (Answer(headers=PROTOBUF, body=b'{"partialSuccess":null}'), "dropped"),
    "200 with a login page": (Answer(headers={"Content-Type": "text/html"}, body=b"<html>Sign in</html>"), "sent"),
    "200 with rejected spans": (Answer(headers=PROTOBUF, body=PARTIAL_SUCCESS.SerializeToString()), "sent"),
}


def test_answers_that_a_collector_retries_and_those_after_which_it_drops_spans(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    """The table of docs/topologies.md. The exporter of this library drops none of these spans."""
    changes = {"exporters": {"otlp_http/mlflow": {"retry_on_failure": {"initial_interval": "50ms"}}}}
    variables = collector_variables(scripted_server.url, "1", "team-a")
    results = {}
    with Collector(tmp_path, "fixed-no-auth", variables, changes) as collector:
        exporter = MLflowSpanExporter(f"{collector.http}/v1/traces")

        def count_finished() -> float:
            return sum(collector.metric(f"otelcol_exporter_{result}_spans") for result in ("sent", "send_failed"))

        for index, (name, (answer, _)) in enumerate(ANSWERS.items()):
            requests, sent = len(scripted_server.requests), collector.metric("otelcol_exporter_sent_spans")
            scripted_server.answer(answer, then=ACCEPTED)
            assert exporter.export(make_spans(name)) is SpanExportResult.SUCCESS
            wait_until(lambda: count_finished() > index, what=name)  # noqa: B023 - called in this round
            is_sent = collector.metric("otelcol_exporter_sent_spans") > sent
            is_retried = len(scripted_server.requests) == requests + 2
            results[name] = ("retried" if is_retried else "sent") if is_sent else "dropped"
        exporter.shutdown()
    assert results == {name: result for name, (_, result) in ANSWERS.items()}


# For a few requests of one span. The shipped files have 1 GiB.
SMALL_QUEUE = {
    "exporters": {
        "otlp_http/mlflow": {"sending_queue": {"queue_size": 1000}, "retry_on_failure": {"max_interval": "1s"}}
    }
}


def test_collector_with_full_queue_rejects_spans_and_the_library_keeps_them(
    scripted_server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(Answer(503))
    names = [f"span {number}" for number in range(8)]
    with Collector(tmp_path, "fixed-no-auth", collector_variables(scripted_server.url, "1"), SMALL_QUEUE) as collector:
        exporter = MLflowSpanExporter(f"{collector.http}/v1/traces", timeout=1)
        for name in names:
            exporter.export(make_spans(name))
        wait_until(lambda: "503" in caplog.text, what="a full queue")
        scripted_server.answer(ACCEPTED)
        assert exporter.force_flush(60_000)
        assert exporter.stats().delivered == len(names)
        exporter.shutdown()
        wait_until(lambda: collector.metric("otelcol_exporter_sent_spans") == len(names))
    accepted = scripted_server.requests[-len(names) :]
    assert {span.name for request in accepted for span in request.spans()} == set(names)


def test_per_tenant_collector_with_full_queue_confirms_spans_and_drops_them(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    """docs/topologies.md says so: the processor `batch` confirms spans before they are in the queue."""
    scripted_server.answer(Answer(503))
    variables = {**collector_variables(scripted_server.url), "MLFLOW_TRACKING_TOKEN": SECRET}
    with Collector(tmp_path, "per-tenant", variables, SMALL_QUEUE) as collector:
        exporter = MLflowSpanExporter(f"{collector.http}/v1/traces", experiment_id=1)
        for number in range(8):
            assert exporter.export(make_spans(f"span {number}")) is SpanExportResult.SUCCESS
        assert exporter.stats().delivered == 8
        exporter.shutdown()
        wait_until(lambda: collector.metric("otelcol_exporter_enqueue_failed_spans") > 0)


def test_export_to_the_grpc_port_of_a_collector_names_the_http_port(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variables = collector_variables("http://127.0.0.1:9", "1", "default")
    with Collector(tmp_path, "fixed-no-auth", variables) as collector:
        exporter = MLflowSpanExporter(f"{collector.grpc}/v1/traces", timeout=1, experiment_id="1")
        assert exporter.export(make_spans("a")) is SpanExportResult.FAILURE
        exporter.shutdown(100)
    assert "http://collector:4318" in caplog.text
    # A reset of the connection may discard what the server has sent, which shows its protocol.
    assert "[MLO-214]" in caplog.text or "[MLO-209]" in caplog.text


def test_default_experiment_id_of_the_configurations_is_rejected(
    server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With an empty header instead, MLflow would answer 200 and store nothing."""
    headers = {"x-mlflow-experiment-id": "none-was-given"}
    exporter = MLflowSpanExporter(f"{server.uri}/v1/traces", headers=headers, timeout=10)
    assert exporter.export(make_spans("answer")) is SpanExportResult.FAILURE
    assert "400: Invalid experiment ID 'none-was-given'" in caplog.text
    exporter.shutdown(500)
