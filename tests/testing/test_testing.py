"""The public testing package."""

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import configure, testing, trace_context, traced
from mlflow_otlp_exporter.testing import Recording, RecordingEndpoint, recording
from support.environments import ROOT
from support.interruptions import raise_error
from support.otlp_bodies import encode_spans, to_json
from support.spans import make_spans


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@traced(kind="TOOL")
def tool(city: str) -> dict[str, str]:
    return {city: "rain"}


@traced(kind="AGENT")
def agent(question: str) -> str:
    tool("Lyon")
    return question.upper()


def test_code_of_the_testing_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "testing.md", "exec"), {"__name__": "page"})


def test_recording_returns_spans_traces_and_destination() -> None:
    with recording(experiment="agents", workspace="team-a", service_name="bot") as recorded:
        with trace_context(session="s-1", user="ada", tags={"release": "1"}, run_id="r-1"):
            agent("rain?")
        assert recorded.trace.tree == ["agent", "  tool"]
    trace = recorded.trace
    root = trace.root
    assert (trace.session, trace.user, trace.tags) == ("s-1", "ada", {"release": "1"})
    assert (root.inputs, root.outputs, root.kind) == ({"question": "rain?"}, "RAIN?", "AGENT")
    assert trace.span("tool").outputs == {"Lyon": "rain"}
    assert (root.experiment, root.workspace, root.run_id) == ("agents", "team-a", "r-1")
    assert root.resource["service.name"] == "bot"
    assert root.scope == "mlflow_otlp_exporter"
    assert root.end > root.start
    assert trace.trace_id == root.trace_id
    with pytest.raises(LookupError, match=r"no span 'x', but \['agent', 'tool'\]"):
        trace.span("x")


def test_recording_of_an_exception_has_status_and_event() -> None:
    @traced
    def fail() -> None:
        raise ValueError("no")

    with recording() as recorded, pytest.raises(ValueError, match="no"):
        fail()
    root = recorded.trace.root
    assert (root.status, root.message) == ("ERROR", "ValueError: no")
    (event,) = root.events
    assert event[0] == "exception"
    assert event[1]["exception.type"] == "ValueError"


def test_recording_twice_in_one_process_separates_traces() -> None:
    for _ in range(2):
        with recording() as recorded:
            agent("a")
            recorded.clear()
            assert recorded.spans == []
            agent("b")
            agent("c")
        assert [trace.root.outputs for trace in recorded.traces] == ["B", "C"]
        with pytest.raises(LookupError, match="2 traces, not one"):
            _ = recorded.trace


def test_configure_inside_recording_is_recorded_and_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector.example/v1/traces")
    with recording() as recorded:
        configure(experiment="of the app")
        agent("a")
    assert recorded.trace.root.experiment == "of the app"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow.example"
    assert os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://collector.example/v1/traces"


def test_endpoint_status_503_keeps_spans_until_200() -> None:
    with recording() as recorded:
        recorded.endpoint.status = 503
        agent("a")
        result = recorded.telemetry.flush(0.3)
        # On a busy machine, the spans are on disk at the end of the flush; otherwise, a retry is pending.
        assert (result.delivered, result.spooled + result.pending, result.dropped) == (0, 2, 0)
        assert recorded.endpoint.spans == []
        recorded.endpoint.status = 200
        assert recorded.telemetry.flush().delivered == 2


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_endpoint_records_another_process(compression: str) -> None:
    code = (
        "from mlflow_otlp_exporter import configure, traced\n"
        "configure(experiment_id=7)\n"
        "traced(name='x' * 2000)(lambda: None)()\n"
    )
    with RecordingEndpoint() as endpoint:
        variables = {"MLFLOW_TRACKING_URI": endpoint.url, "OTEL_EXPORTER_OTLP_COMPRESSION": compression}
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, check=True)
        (trace,) = endpoint.wait_for(1, timeout=30)
        assert (trace.root.name, trace.root.experiment) == ("x" * 2000, "7")
        with pytest.raises(TimeoutError, match="1 trace with a root after"):
            endpoint.wait_for(2, timeout=0.05)


def test_endpoint_records_json_of_any_language() -> None:
    body = to_json(encode_spans(make_spans("from JavaScript")))
    with RecordingEndpoint() as endpoint:
        url = f"{endpoint.url}/v1/traces"
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "x-mlflow-experiment-id": "7"}
        answer = requests.post(url, gzip.compress(body), headers=headers, timeout=10)
        assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, "application/json", {})
        (span,) = endpoint.spans
        assert (span.name, span.experiment) == ("from JavaScript", "7")
        for content_type, content, status in (("application/json", b"{", 400), ("text/plain", b"", 415)):
            rejected = requests.post(url, content, headers={"Content-Type": content_type}, timeout=10)
            assert rejected.status_code == status
        assert len(endpoint.spans) == 1


def test_endpoint_answers_like_mlflow() -> None:
    with RecordingEndpoint() as endpoint:
        assert requests.get(endpoint.url + "/version", timeout=5).text.count(".") == 2
        assert requests.get(endpoint.url + "/health", timeout=5).text == "OK"
        for answer in (requests.get(endpoint.url + "/x", timeout=5), requests.post(endpoint.url + "/x", timeout=5)):
            assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


def test_recording_has_its_public_type_and_repr() -> None:
    with recording() as recorded:
        assert isinstance(recorded, Recording)
        assert "_is_open" not in repr(recorded)


def test_recording_whose_flush_is_interrupted_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.setattr(testing, "flush", lambda _: raise_error(KeyboardInterrupt())())
    with pytest.raises(KeyboardInterrupt), recording() as recorded:
        agent("a")
    assert recorded.telemetry.is_closed
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow.example"
