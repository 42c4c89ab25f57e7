"""Behind a real nginx, in front of a real MLflow: limits, login pages, rotating tokens, time-outs."""

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
        learned = nginx.counts()
        assert learned[413]
        # Later, nothing runs into the limit any more.
        exporter.export(make_traces(40, attributes=lambda trace, _: {"prompt": PROMPT + random_text(100_000, trace)}))
        assert exporter.force_flush(60_000)
        stats = exporter.stats()
        exporter.shutdown()
        wait_until(lambda: sum(nginx.counts().values()) == stats.requests, what="all answers in the access log")
        assert nginx.counts()[413] == learned[413]
    assert (stats.delivered, stats.dropped) == (160, 0)
    expected = [f"root {trace}" for trace in itertools.chain(range(120), range(40))]
    assert stored_span_names(database(mlflow_server), number) == sorted(expected)


@pytest.mark.parametrize(("page", "status"), [(REDIRECT, 302), (LOGIN_PAGE, 200)], ids=["redirect", "page"])
def test_login_page_does_not_count_as_success(
    page: str, status: int, mlflow_server: MLflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = mlflow_server.create_experiment(f"behind a login that answers {status}")
    with Nginx(tmp_path / "nginx", page, mlflow_server.uri) as nginx:
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(MLflowSpanProcessor(exporter))
        began = time.monotonic()
        with provider.get_tracer("tests").start_as_current_span("root"):
            provider.get_tracer("tests").start_span("child").end()
        wait_until(lambda: nginx.counts()[status] >= 3 and time.monotonic() > began + 5, 30)
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
    name = f"looked up behind a login that answers {status}"
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


def accepting(token: str) -> str:
    return f"""
    location / {{
        if ($http_authorization != "Bearer {token}") {{ return 401; }}
        proxy_pass {{upstream}};
    }}
    """


@contextmanager
def running(function: Callable[[], None]) -> Iterator[threading.Thread]:
    """Runs a function beside the test; what it raises is raised here."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, name="beside the test")
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)
    if raised:
        raise raised[0]


def test_token_rotation_costs_no_span_and_one_rejection_each(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """The server turns to a new token every two seconds, and the file follows a moment later."""
    number = mlflow_server.create_experiment("rotating token")
    file = tmp_path / "token"
    tokens = [f"{SECRET}-{rotation}" for rotation in range(6)]
    allowed: dict[str, int] = {}
    pause = threading.Event()

    def rotate(nginx: Nginx) -> None:
        for old, token in itertools.pairwise(tokens):
            pause.wait(1.5)
            began = time.monotonic()
            nginx.reload(accepting(token))
            # However busy the machine is, the old token is tried; and in the time after that, not again.
            wait_until(lambda old=old: nginx.rejected_credentials()[f"Bearer {old}"], what="a 401 for the old token")  # type: ignore[misc]
            pause.wait(0.5)
            # As the kubelet does: another file takes the place of the old one.
            following = file.with_suffix(".new")
            following.write_text(token)
            following.replace(file)
            # The first pause is 2 s, 20 % more or less: a machine that stands still for as long sees another 401.
            allowed[f"Bearer {old}"] = 1 + int((time.monotonic() - began) / 1.5)
        pause.wait(1.0)

    file.write_text(tokens[0])
    with Nginx(tmp_path / "nginx", accepting(tokens[0]), mlflow_server.uri) as nginx:
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number, credentials=file)
        count = 0
        with running(lambda: rotate(nginx)) as rotator:
            while rotator.is_alive():
                exporter.export(make_spans(f"span {count:04}"))  # a request of its own
                count += 1
                pause.wait(0.02)
        assert exporter.force_flush()
        stats = exporter.stats()
        exporter.shutdown()
        rejected = nginx.rejected_credentials()
    assert (stats.delivered, stats.dropped) == (count, 0)
    assert stored_span_names(database(mlflow_server), number) == [f"span {each:04}" for each in range(count)]
    assert rejected.keys() == allowed.keys()
    assert {token: count for token, count in rejected.items() if count > allowed[token]} == {}


# A proxy that gives up while the server goes on

IMPATIENT = "proxy_read_timeout 2s;" + PASS
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
def locked(path: Path, how: str, until_true: Callable[[], object], more: float) -> Iterator[None]:
    """Holds an SQLite database until something has happened, and some seconds more."""
    taken = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(path, timeout=20.0, isolation_level=None)) as connection:
            connection.execute(f"BEGIN {how}")
            taken.set()
            wait_until(until_true, 30)
            threading.Event().wait(more)
            connection.execute("ROLLBACK")

    with running(hold):
        assert taken.wait(30)
        yield


def read(server: MLflowServer, experiment: str, key: str) -> list[Any]:
    """A metadata value of all traces of an experiment."""
    return [json.loads(info["trace_metadata"].get(key, "null")) for info in server.search_traces(experiment)]


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("how", "more", "workers"),
    [
        pytest.param("EXCLUSIVE", 0.0, 1, id="for a moment"),
        pytest.param("EXCLUSIVE", 5.0, 4, id="for long"),
        # Other workers read, and truly find nothing, while one still waits for its turn to write.
        pytest.param("IMMEDIATE", 5.0, 4, id="for long while reads are answered"),
    ],
)
@pytest.mark.parametrize("version", ["3.10.1", "3.13.0"])
def test_proxy_time_out_doubles_no_token(version: str, how: str, more: float, workers: int, tmp_path: Path) -> None:
    extra = ["--workers", str(workers)]
    server = MLflowServer.start(tmp_path / "mlflow", python=mlflow_python(version), extra=extra)
    try:
        with Nginx(tmp_path / "nginx", IMPATIENT, server.uri) as nginx:
            spans = make_traces(3, children=1, attributes=lambda _, span: LLM_CALL if span else {})
            number = server.create_experiment("ours")
            exporter = MLflowSpanExporter(timeout=60, tracking_uri=nginx.uri, experiment_id=number)
            with locked(database(server), how, lambda: nginx.counts()[504], more):
                exporter.export(spans)
            assert exporter.force_flush(60_000)
            stats = exporter.stats()
            exporter.shutdown()
            assert nginx.counts()[504] >= 1
            assert (stats.delivered, stats.dropped) == (6, 0)
            assert len(stored_span_names(database(server), number)) == 6
            assert read(server, number, "mlflow.trace.tokenUsage") == [ONCE] * 3
            if version == "3.13.0":
                once = {"input_cost": 1.5e-05, "output_cost": 3e-05, "total_cost": 4.5e-05}
                assert read(server, number, "mlflow.trace.cost") == [pytest.approx(once)] * 3

            if not more:  # the control: upstream's exporter
                number = server.create_experiment("upstream's")
                headers = {"x-mlflow-experiment-id": number}
                upstream = OTLPSpanExporter(f"{nginx.uri}/v1/traces", headers=headers)
                before = nginx.counts()[504]
                with locked(database(server), how, lambda: nginx.counts()[504] > before, more):
                    upstream.export(make_traces(1, attributes=lambda *_: LLM_CALL))
                upstream.shutdown()  # type: ignore[no-untyped-call]
                assert read(server, number, "mlflow.trace.tokenUsage") == [TWICE]
    finally:
        server.stop()
