"""Recovery of the journal of a killed process: its spans go to the destination of that process."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, trace_context
from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.delivery import spool_consumer
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool import file_format
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.journal_format import (
    JournalHeader,
    build_header_record,
    encode_line,
    parse_header,
    parse_lines,
)
from mlflow_otlp_exporter._internal.spool.recovery import AbandonedJournal, RecoveredTrace, find_abandoned_journals
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import make_traces, wait_until

START = """
import os, signal
from opentelemetry import trace
from mlflow_otlp_exporter import configure, trace_context
configure()
tracer = trace.get_tracer("app")
"""
KILL = "\nos.kill(os.getpid(), signal.SIGKILL)\n"
HEADERS = ("x-mlflow-workspace", "x-mlflow-experiment-id", "x-mlflow-run-id")
TWO_TENANTS = """
for tenant, workspace in (("a", "team-a"), ("b", "team-b")):
    with trace_context(workspace=workspace, experiment="killed agents"), tracer.start_as_current_span(f"{tenant} root"):
        tracer.start_span(f"{tenant} ended").end()
open_root = tracer.start_span("never ended")
with trace_context(workspace="team-b", experiment="killed agents"):
    root = tracer.start_span("b open root", context=trace.set_span_in_context(trace.INVALID_SPAN))
    tracer.start_span("b child", context=trace.set_span_in_context(root)).end()
"""


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_consumer, "_MAINTENANCE_SECONDS", 0.5)
    monkeypatch.setattr(spool_consumer, "_IDLE_SECONDS", 0.2)


@pytest.fixture
def server(scripted_server: ScriptedServer) -> ScriptedServer:
    def look_up(request: RecordedRequest) -> Answer:
        name = parse_qs(request.query)["experiment_name"][0]
        body = {"experiment": {"experiment_id": f"{name}'s", "lifecycle_stage": "active"}}
        return Answer(200, headers={"Content-Type": "application/json"}, body=json.dumps(body).encode())

    scripted_server.answer_with("/version", lambda _: Answer(200, body=b"3.17.2"))
    scripted_server.answer_with("/api/2.0/mlflow/experiments/get-by-name", look_up)
    return scripted_server


def run_and_kill(url: str, code: str, **variables: str) -> None:
    """Run an application that kills itself with SIGKILL before it sends any span."""
    completed = subprocess.run(
        [sys.executable, "-c", START + code + KILL],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_OTLP_DURABILITY": "every-span",
            "MLFLOW_OTLP_LINGER": "600",
            "MLFLOW_OTLP_HOLD": "600",
            **variables,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert completed.returncode == -signal.SIGKILL, completed.stderr
    assert journals()


def journals() -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/journal/*.journal"))


def spooled_files(folder: str = ".") -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"]).glob(f"mlflow-otlp-exporter/*/{folder}/*.otlp"))


@contextmanager
def next_run(url: str, **arguments: Any) -> Iterator[MLflowSpanExporter]:
    """Run another application until it has sent everything on disk."""
    exporter = MLflowSpanExporter(tracking_uri=url, **{"experiment": "mine", "spool": True, **arguments})
    try:
        wait_until(lambda: not journals() and not spooled_files())
        yield exporter
    finally:
        exporter.shutdown(5000)


def names_by_destination(server: ScriptedServer) -> dict[tuple[str | None, ...], list[str]]:
    """Return the names of the received spans by the headers that name their destination."""
    names: dict[tuple[str | None, ...], list[str]] = {}
    for request in server.to("/v1/traces"):
        destination = tuple(request.headers.get(name) for name in HEADERS)
        names.setdefault(destination, []).extend(span.name for span in request.spans())
    return {destination: sorted(group) for destination, group in names.items()}


# Destinations


def test_recovered_spans_go_to_their_tenants(workspace_server: MLflowServer) -> None:
    experiments = {name: workspace_server.create_experiment("killed agents", workspace=f"team-{name}") for name in "ab"}
    own = workspace_server.create_experiment("the next run's")
    run_and_kill(workspace_server.uri, TWO_TENANTS)
    with next_run(workspace_server.uri, experiment="the next run's") as exporter:
        wait_until(lambda: exporter.stats().delivered == 5)
    for name, expected in (("a", ["a ended", "a root"]), ("b", ["b child", "b ended", "b root"])):
        infos = workspace_server.search_traces(experiments[name], workspace=f"team-{name}")
        traces = [workspace_server.trace(info["trace_id"].removeprefix("tr-"), f"team-{name}") for info in infos]
        assert sorted(span["name"] for trace in traces for span in trace["spans"]) == expected  # type: ignore[index]
    assert workspace_server.search_traces(own) == []


def test_recovered_spans_ignore_the_destination_of_the_next_run(server: ScriptedServer) -> None:
    app = "tracer.start_span(os.environ['MLFLOW_EXPERIMENT_NAME']).end()\n"
    routed = app + "with trace_context(run_id='r', experiment_id=7): tracer.start_span('routed').end()\n"
    run_and_kill(server.url, routed, MLFLOW_EXPERIMENT_NAME="one", MLFLOW_WORKSPACE="ours")
    run_and_kill(server.url, app, MLFLOW_EXPERIMENT_NAME="two")
    run_and_kill(server.url, "tracer.start_span('by service').end()", OTEL_SERVICE_NAME="three")
    with next_run(server.url, workspace="other", run_id="other"):
        pass
    # A killed process may have begun to send the spans of the previous one: they come again then, to the same place.
    assert {destination: set(names) for destination, names in names_by_destination(server).items()} == {
        ("ours", "one's", None): {"one"},
        ("ours", "7", "r"): {"routed"},
        (None, "two's", None): {"two"},
        (None, "three's", None): {"by service"},
    }


def test_recovered_spans_follow_resource_and_root_attributes(server: ScriptedServer) -> None:
    late = """
with tracer.start_as_current_span("root") as root:
    tracer.start_span("child").end()
    root.set_attribute("mlflow.experiment", "late")
"""
    resource = "service.name=bot,mlflow.workspace=of-resource"
    run_and_kill(server.url, late, MLFLOW_EXPERIMENT_NAME="one", OTEL_RESOURCE_ATTRIBUTES=resource)
    with next_run(server.url):
        pass
    assert names_by_destination(server) == {("of-resource", "late's", None): ["child", "root"]}


def test_recovered_spans_do_not_change_routes_of_the_next_run(server: ScriptedServer) -> None:
    """In a trace of several processes, each process decides about its own spans."""
    ids = "from opentelemetry.trace import *\nparent = SpanContext(7, 8, True, TraceFlags(1))\n"
    spans = "context = set_span_in_context(NonRecordingSpan(parent))\n"
    theirs = "with trace_context(experiment='theirs'): tracer.start_span('recovered', context).end()\n"
    run_and_kill(server.url, ids + spans + theirs)
    with next_run(server.url) as exporter:
        processor = MLflowSpanProcessor(exporter, linger=0.01)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        scope: dict[str, Any] = {}
        exec(ids + spans, scope)
        with trace_context(experiment="ours"):
            provider.get_tracer("tests").start_span("live", scope["context"]).end()
        assert processor.force_flush()
        provider.shutdown()
    assert names_by_destination(server) == {(None, "theirs's", None): ["recovered"], (None, "ours's", None): ["live"]}


def test_recovered_spans_without_destination_become_dead_letters(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    run_and_kill(server.url, "with trace_context(experiment='theirs'): tracer.start_span('whose').end()\n")
    [path] = journals()
    path.write_bytes(b"\n".join(line for line in path.read_bytes().split(b"\n") if b'"origins"' not in line))
    with next_run(server.url) as exporter:
        wait_until(lambda: exporter.stats().dropped == 1)
    assert names_by_destination(server) == {}
    [path] = spooled_files("refused")
    header, _, [span] = file_format.decode_file(path.read_bytes())
    assert "does not name their destination" in header.message
    assert b"whose" in span.body
    assert caplog.text.count("does not name their destination") == 1


def test_journal_that_cannot_be_read_is_kept(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_and_kill(server.url, "tracer.start_span('a').end()", MLFLOW_EXPERIMENT_NAME="one")
    is_failing = threading.Event()
    is_failing.set()
    read_traces = AbandonedJournal.read_traces

    def read_or_fail(journal: AbandonedJournal) -> list[RecoveredTrace]:
        if is_failing.is_set():
            raise OSError(5, "Input/output error")
        return read_traces(journal)

    monkeypatch.setattr(AbandonedJournal, "read_traces", read_or_fail)
    exporter = MLflowSpanExporter(tracking_uri=server.url, spool=True)
    wait_until(lambda: "cannot be read" in caplog.text)
    assert journals()
    is_failing.clear()
    wait_until(lambda: names_by_destination(server) == {(None, "one's", None): ["a"]})
    exporter.shutdown(2000)


def test_damaged_journal_is_quarantined_and_blocks_nothing(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    run_and_kill(server.url, "[tracer.start_span(name).end() for name in 'abc']", MLFLOW_EXPERIMENT_NAME="one")
    [path] = journals()
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"x"'))
    (path.parent / "0-00000000-000000.journal").write_bytes(b"PK\x03\x04" * 50 + b"\n")
    with next_run(server.url):
        pass
    assert names_by_destination(server) == {(None, "one's", None): ["a", "c"]}
    assert len(spooled_files("damaged")) == 2
    message = "1 line in the journal of a killed process cannot be read. The journal was moved to damaged/."
    assert caplog.text.count(message) == 1
    assert "damaged      0 spans in 2 files" in spool_status(server.url)


def spool_status(url: str) -> str:
    variables = {**os.environ, "MLFLOW_TRACKING_URI": url}
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "spool", "status"]
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=200).stdout


@pytest.mark.parametrize("remaining_bytes", [1, 5, 30])
def test_truncated_last_line_is_not_reported_as_damage(server: ScriptedServer, remaining_bytes: int) -> None:
    run_and_kill(server.url, "[tracer.start_span(name).end() for name in 'ab']", MLFLOW_EXPERIMENT_NAME="one")
    [path] = journals()
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\n", 0, -1) + remaining_bytes])
    with next_run(server.url):
        pass
    assert names_by_destination(server) == {(None, "one's", None): ["a"]}
    assert spooled_files("damaged") == []


def test_spool_commands_flush_and_purge_journals(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    code = "tracer.start_span('a').end(); tracer.start_span('b').end()"
    run_and_kill(server.url, code, MLFLOW_EXPERIMENT_NAME="one")
    assert main_module.main(["spool", "flush"]) == 0
    assert "2 spans sent, 0 queued" in capsys.readouterr().out
    assert names_by_destination(server) == {(None, "one's", None): ["a", "b"]}
    run_and_kill(server.url, code, MLFLOW_EXPERIMENT_NAME="one")
    assert main_module.main(["spool", "purge"]) == 0
    assert "2 spans in 1 file would be deleted" in capsys.readouterr().out
    assert main_module.main(["spool", "purge", "--yes"]) == 0
    assert journals() == []
    assert main_module.main(["spool", "flush"]) == 0
    assert len(server.to("/v1/traces")) == 1


# Content


@pytest.mark.parametrize(("trace_filter", "is_filtered"), [("default", True), ("none", False), ("tests.*", False)])
def test_recovered_traces_pass_the_filter_of_the_killed_process(
    server: ScriptedServer, trace_filter: str, is_filtered: bool
) -> None:
    """The next process has another setting."""
    code = """
flask, httpx = (trace.get_tracer(f"opentelemetry.instrumentation.{name}") for name in ("flask", "httpx"))
with flask.start_as_current_span("GET /health"):
    httpx.start_span("GET").end()
with flask.start_as_current_span("POST /ask"):
    tracer.start_span("agent").end()
root = flask.start_span("open")
httpx.start_span("call in a trace with an open root", trace.set_span_in_context(root)).end()
remote = trace.SpanContext(7, 8, True, trace.TraceFlags(1))
flask.start_span("part of a remote trace", trace.set_span_in_context(trace.NonRecordingSpan(remote))).end()
"""
    run_and_kill(server.url, code, MLFLOW_OTLP_NOISE=trace_filter, MLFLOW_EXPERIMENT_NAME="one")
    with next_run(server.url) as exporter:
        wait_until(lambda: exporter.stats().delivered == (4 if is_filtered else 6))
        assert exporter.stats().filtered == (2 if is_filtered else 0)
    health = [] if is_filtered else ["GET", "GET /health"]
    other = ["POST /ask", "agent", "call in a trace with an open root", "part of a remote trace"]
    assert names_by_destination(server) == {(None, "one's", None): sorted(health + other)}


def test_trace_with_acknowledged_spans_is_not_filtered(tmp_path: Path) -> None:
    journal = Journal(lambda: tmp_path / "journal", ProblemLog(), JournalHeader(trace_filter=("tests",)))
    child, root = make_traces(1, children=1)
    for span in (child, root):
        journal.append(span)
    journal.acknowledge([(child.context.trace_id, child.context.span_id)])
    journal.close()
    [abandoned] = find_abandoned_journals(tmp_path / "journal", "none", {})
    [trace] = abandoned.read_traces()
    abandoned.release_files()
    assert [span.name for span in trace.spans.values()] == ["root 0"]
    assert not trace.is_filtered
    trace.has_settled_spans = False
    assert trace.is_filtered


def test_recovered_spans_are_masked_once(server: ScriptedServer) -> None:
    """A mask that makes pseudonyms would make pseudonyms of pseudonyms: one user would become two."""
    mask = "import hashlib; configure(mask=lambda text: hashlib.sha256(text.encode()).hexdigest())\n"
    run_and_kill(server.url, mask + "tracer.start_span('a', attributes={'user.id': 'ada', 'llm.odd': 'b'}).end()\n")
    with next_run(server.url, mask=lambda text: hashlib.sha256(text.encode()).hexdigest()):
        pass
    [span] = [span for request in server.to("/v1/traces") for span in request.spans()]
    values = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    assert values["user.id"] == hashlib.sha256(b"ada").hexdigest()
    assert values["llm.odd"] == hashlib.sha256(b"b").hexdigest()


@pytest.mark.parametrize("mask", ["", "email"], ids=["unmasked", "masked"])
def test_recovered_spans_keep_their_dropped_counts(server: ScriptedServer, mask: str) -> None:
    code = """
links = [trace.Link(trace.SpanContext(number, 1, False), {"a": 1, "b": 2, "c": 3}) for number in (1, 2, 3)]
span = tracer.start_span("a", attributes=dict.fromkeys("abcdef", 1), links=links)
for name in "ab":
    span.add_event(name, {"a": 1, "b": 2})
span.end()
"""
    kinds = ("SPAN_ATTRIBUTE", "SPAN_EVENT", "SPAN_LINK", "EVENT_ATTRIBUTE", "LINK_ATTRIBUTE")
    limits = {f"OTEL_{kind}_COUNT_LIMIT": "1" for kind in kinds}
    run_and_kill(server.url, code, **limits, MLFLOW_OTLP_MASK=mask, MLFLOW_EXPERIMENT_NAME="one")
    with next_run(server.url, enrich=False):
        pass
    [span] = [span for request in server.to("/v1/traces") for span in request.spans()]
    assert (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count) == (5, 1, 2)
    assert [event.dropped_attributes_count for event in span.events] == [1]
    assert [link.dropped_attributes_count for link in span.links] == [2]


def test_recovered_unmasked_spans_are_redacted(server: ScriptedServer) -> None:
    """The killed process had no mask: its spans are masked, and their large payloads replaced, when they are sent."""
    code = "tracer.start_span('a', attributes={'input.value': 'data:image/png;base64,' + 'A' * 2_000_000}).end()\n"
    run_and_kill(server.url, code + "tracer.start_span('b', attributes={'user.id': 'ada@x.org'}).end()\n")
    with next_run(server.url, mask=["email"]):
        pass
    bodies = b"".join(request.content for request in server.to("/v1/traces"))
    assert b"A" * 1000 not in bodies
    assert b"[email]" in bodies
    assert b"ada@x.org" not in bodies


# Header


@pytest.mark.parametrize(
    "header",
    [
        JournalHeader(),
        JournalHeader(Destination("w", "é", "7", "r"), is_redacted=True, trace_filter=("default", "my.*")),
    ],
)
def test_journal_header_round_trips(header: JournalHeader) -> None:
    [record] = parse_lines(encode_line(build_header_record(header)))[0]
    assert parse_header(record) == header


def test_journal_holds_no_credential(tmp_path: Path) -> None:
    arguments = {
        "tracking_uri": "http://user:planted-one@127.0.0.1:9",
        "credentials": "planted-two",
        "spool_dir": tmp_path,
    }
    exporter = MLflowSpanExporter(**arguments, spool=True, durability="every-span", headers={"x-key": "planted-three"})  # type: ignore[arg-type]
    processor = MLflowSpanProcessor(exporter)
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with trace_context(workspace="w", experiment="e"):
        provider.get_tracer("tests").start_span("a").end()
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    names = "".join(map(str, tmp_path.rglob("*")))
    provider.shutdown()
    assert b'"origins"' in content
    assert b"planted" not in content
    assert "planted" not in names


def test_next_run_recovers_only_journals_with_its_credentials(server: ScriptedServer, tmp_path: Path) -> None:
    """An exporter must not send the spans of another tenant with its own credentials."""
    for name in "ab":
        (tmp_path / name).write_text(f"token-{name}")
        code = f"tracer.start_span('{name}').end()"
        run_and_kill(server.url, code, MLFLOW_EXPERIMENT_ID="1", MLFLOW_TRACKING_TOKEN_FILE=str(tmp_path / name))
    assert len({path.parent for path in journals()}) == 2
    exporter = MLflowSpanExporter(tracking_uri=server.url, spool=True, credentials=tmp_path / "b")
    wait_until(lambda: exporter.stats().delivered == 1)
    exporter.shutdown(2000)
    assert [(r.headers["authorization"], [s.name for s in r.spans()]) for r in server.to("/v1/traces")] == [
        ("Bearer token-b", ["b"])
    ]
    assert len(journals()) == 1


def test_changed_trace_filter_applies_to_later_spans(tmp_path: Path) -> None:
    journal = Journal(lambda: tmp_path / "journal", ProblemLog())
    before, after = make_spans("before", "after")
    journal.append(before)
    journal.set_trace_filter(["tests"])
    journal.append(after)
    journal.close()
    [abandoned] = find_abandoned_journals(tmp_path / "journal", "none", {})
    assert {span.name: trace.is_filtered for trace in abandoned.read_traces() for span in trace.spans.values()} == {
        "before": False,
        "after": True,
    }
    abandoned.release_files()
