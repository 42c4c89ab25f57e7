"""Export through a real nginx to a real MLflow: body limits, login pages, token rotation, time-outs."""

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor
from support.environments import mlflow_python
from support.markers import PROMPT, SECRET
from support.mlflow_server import MLflowServer
from support.nginx import PASS, Nginx
from support.spans import make_spans
from support.traces import make_traces, random_text, stored_span_names, wait_until

pytestmark = pytest.mark.needs("nginx")

REDIRECT = """
location / { return 302 http://login.invalid/oauth/start?rd=%2Fv1%2Ftraces; }
"""
LOGIN_PAGE = """
location / {
    default_type text/html;
    return 200 "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Log in with OpenShift</body></html>";
}
"""


def database(server: MLflowServer) -> Path:
    return server.log.parent / "mlflow.db"


def test_proxy_with_a_body_limit_gets_smaller_requests(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    number = mlflow_server.create_experiment("limited bodies")
    with Nginx(tmp_path / "nginx", "client_max_body_size 1m;" + PASS, mlflow_server.uri) as nginx:
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number)
        exporter.export(make_traces(120, attributes=lambda trace, _: {"prompt": PROMPT + random_text(100_000, trace)}))
        assert exporter.force_flush(60_000)
        requests = exporter.stats().requests
        wait_until(lambda: sum(nginx.counts().values()) == requests, what="all answers in the access log")
        counts = nginx.counts()
        assert counts[413]
        # Later requests stay below the limit.
        exporter.export(make_traces(40, attributes=lambda trace, _: {"prompt": PROMPT + random_text(100_000, trace)}))
        assert exporter.force_flush(60_000)
        stats = exporter.stats()
        exporter.shutdown()
        wait_until(lambda: sum(nginx.counts().values()) == stats.requests, what="all answers in the access log")
        assert nginx.counts()[413] == counts[413]
    assert (stats.delivered, stats.dropped) == (160, 0)
    expected = [f"root {trace}" for trace in itertools.chain(range(120), range(40))]
    assert stored_span_names(database(mlflow_server), number) == sorted(expected)


@pytest.mark.parametrize(("page", "status"), [(REDIRECT, 302), (LOGIN_PAGE, 200)], ids=["redirect", "page"])
def test_login_page_does_not_count_as_success(
    page: str, status: int, mlflow_server: MLflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = mlflow_server.create_experiment(f"behind a login page with {status}")
    with Nginx(tmp_path / "nginx", page, mlflow_server.uri) as nginx:
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(MLflowSpanProcessor(exporter))
        begin = time.monotonic()
        with provider.get_tracer("tests").start_as_current_span("root"):
            provider.get_tracer("tests").start_span("child").end()
        wait_until(lambda: nginx.counts()[status] >= 3 and time.monotonic() > begin + 5, 30)
        assert exporter.stats().delivered == 0
        assert stored_span_names(database(mlflow_server), number) == []
        nginx.reload(PASS)
        assert provider.force_flush()
        stats = exporter.stats()
        provider.shutdown()
    assert (stats.delivered, stats.dropped) == (2, 0)
    assert stored_span_names(database(mlflow_server), number) == ["child", "root"]
    assert caplog.text.count("Export failing, spans are queued in memory") == 1
    assert caplog.text.count("Export recovered") == 1


@pytest.mark.parametrize(("page", "status"), [(REDIRECT, 302), (LOGIN_PAGE, 200)], ids=["redirect", "page"])
def test_login_page_during_the_experiment_lookup_is_retried(
    page: str, status: int, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    name = f"lookup behind a login page with {status}"
    number = mlflow_server.create_experiment(name)
    with Nginx(tmp_path / "nginx", page, mlflow_server.uri) as nginx:
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment=name)
        assert exporter.export(make_traces(1)) is SpanExportResult.FAILURE
        assert exporter.stats().delivered == 0
        nginx.reload(PASS)
        assert exporter.force_flush()
        stats = exporter.stats()
        exporter.shutdown()
    assert (stats.delivered, stats.dropped) == (1, 0)
    assert stored_span_names(database(mlflow_server), number) == ["root 0"]


def server_block_for(token: str) -> str:
    return f"""
    location / {{
        if ($http_authorization != "Bearer {token}") {{ return 401; }}
        proxy_pass {{upstream}};
    }}
    """


@contextmanager
def run_in_thread(function: Callable[[], None]) -> Iterator[threading.Thread]:
    """Run a function in a thread; raise its exception in the end."""
    errors: list[BaseException] = []

    def collect_error() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=collect_error, name="beside the test")
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)
    if errors:
        raise errors[0]


def test_token_rotation_costs_no_span_and_one_rejection_each(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """The server changes its token every two seconds, and the file a moment later."""
    number = mlflow_server.create_experiment("rotating token")
    file = tmp_path / "token"
    tokens = [f"{SECRET}-{rotation}" for rotation in range(6)]
    allowed: dict[str, int] = {}
    pause = threading.Event()

    def rotate(nginx: Nginx) -> None:
        for old, token in itertools.pairwise(tokens):
            pause.wait(1.5)
            begin = time.monotonic()
            nginx.reload(server_block_for(token))
            # Wait for the rejection of the old token, also on a busy machine; later requests must not use it again.
            wait_until(lambda old=old: nginx.rejected_credentials()[f"Bearer {old}"], what="a 401 for the old token")  # type: ignore[misc]
            pause.wait(0.5)
            # As the kubelet does: a new file replaces the old one.
            new_file = file.with_suffix(".new")
            new_file.write_text(token)
            new_file.replace(file)
            # The first delay is 2 s, 20 % more or less: if the machine stalls for so long, there is another 401.
            allowed[f"Bearer {old}"] = 1 + int((time.monotonic() - begin) / 1.5)
        pause.wait(1.0)

    file.write_text(tokens[0])
    with Nginx(tmp_path / "nginx", server_block_for(tokens[0]), mlflow_server.uri) as nginx:
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number, credentials=file)
        count = 0
        with run_in_thread(lambda: rotate(nginx)) as rotator:
            while rotator.is_alive():
                exporter.export(make_spans(f"span {count:04}"))  # one request
                count += 1
                pause.wait(0.02)
        assert exporter.force_flush()
        stats = exporter.stats()
        exporter.shutdown()
        rejected = nginx.rejected_credentials()
    assert (stats.delivered, stats.dropped) == (count, 0)
    assert stored_span_names(database(mlflow_server), number) == [f"span {number:04}" for number in range(count)]
    assert rejected.keys() == allowed.keys()
    assert {token: count for token, count in rejected.items() if count > allowed[token]} == {}


# Time-outs of a proxy while the server continues

SHORT_TIME_OUT = "proxy_read_timeout 2s;" + PASS
LLM_CALL = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "gpt-4o-mini",
    "llm.provider": "openai",
    "llm.token_count.prompt": 100,
    "llm.token_count.completion": 50,
    "llm.token_count.total": 150,
}
ONCE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
TWICE = {"input_tokens": 200, "output_tokens": 100, "total_tokens": 300}


@contextmanager
def lock_database(path: Path, mode: str, condition: Callable[[], object], extra_seconds: float) -> Iterator[None]:
    """Lock an SQLite database until a condition is true, and some seconds longer."""
    is_locked = threading.Event()

    def lock() -> None:
        with closing(sqlite3.connect(path, timeout=20.0, isolation_level=None)) as connection:
            connection.execute(f"BEGIN {mode}")
            is_locked.set()
            wait_until(condition, 30)
            threading.Event().wait(extra_seconds)
            connection.execute("ROLLBACK")

    with run_in_thread(lock):
        assert is_locked.wait(30)
        yield


def read_metadata(server: MLflowServer, experiment: str, key: str) -> list[Any]:
    """Return a metadata value of all traces of an experiment."""
    return [json.loads(info["trace_metadata"].get(key, "null")) for info in server.search_traces(experiment)]


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("mode", "extra_seconds", "workers"),
    [
        pytest.param("EXCLUSIVE", 0.0, 1, id="short"),
        pytest.param("EXCLUSIVE", 5.0, 4, id="long"),
        # Other workers read, and return no spans, while one worker still waits to write them.
        pytest.param("IMMEDIATE", 5.0, 4, id="long, with reads"),
    ],
)
@pytest.mark.parametrize("version", ["3.10.1", "3.13.0"])
def test_proxy_time_out_doubles_no_token(
    version: str, mode: str, extra_seconds: float, workers: int, tmp_path: Path
) -> None:
    extra = ["--workers", str(workers)]
    server = MLflowServer.start(tmp_path / "mlflow", python=mlflow_python(version), extra=extra)
    try:
        with Nginx(tmp_path / "nginx", SHORT_TIME_OUT, server.uri) as nginx:
            spans = make_traces(3, children=1, attributes=lambda _, span: LLM_CALL if span else {})
            number = server.create_experiment("ours")
            exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number)
            with lock_database(database(server), mode, lambda: nginx.counts()[504], extra_seconds):
                exporter.export(spans)
            assert exporter.force_flush(60_000)
            stats = exporter.stats()
            exporter.shutdown()
            assert nginx.counts()[504] >= 1
            assert (stats.delivered, stats.dropped) == (6, 0)
            assert len(stored_span_names(database(server), number)) == 6
            assert read_metadata(server, number, "mlflow.trace.tokenUsage") == [ONCE] * 3
            if version == "3.13.0":
                once = {"input_cost": 1.5e-05, "output_cost": 3e-05, "total_cost": 4.5e-05}
                assert read_metadata(server, number, "mlflow.trace.cost") == [pytest.approx(once)] * 3

            if not extra_seconds:  # for comparison: upstream's exporter
                number = server.create_experiment("upstream's")
                headers = {"x-mlflow-experiment-id": number}
                upstream = OTLPSpanExporter(f"{nginx.uri}/v1/traces", headers=headers)
                before = nginx.counts()[504]
                with lock_database(database(server), mode, lambda: nginx.counts()[504] > before, extra_seconds):
                    upstream.export(make_traces(1, attributes=lambda *_: LLM_CALL))
                upstream.shutdown()  # type: ignore[no-untyped-call]
                assert read_metadata(server, number, "mlflow.trace.tokenUsage") == [TWICE]
    finally:
        server.stop()
