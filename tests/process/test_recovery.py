"""What a process that was killed with -9 left in its journal: it goes where that process would have sent it."""

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
KILLED = "\nos.kill(os.getpid(), signal.SIGKILL)\n"
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
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
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


def killed(url: str, code: str, **variables: str) -> None:
    """Runs an app, and kills it with -9 before anything was sent."""
    done = subprocess.run(
        [sys.executable, "-c", START + code + KILLED],
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
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert journals()


def journals() -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/journal/*.journal"))


def on_disk(where: str = ".") -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"]).glob(f"mlflow-otlp-exporter/*/{where}/*.otlp"))


@contextmanager
def next_run(url: str, **arguments: Any) -> Iterator[MLflowSpanExporter]:
    """Another app, at least until all that lay on disk is taken up and sent."""
    exporter = MLflowSpanExporter(tracking_uri=url, **{"experiment": "mine", "spool": True, **arguments})
    try:
        wait_until(lambda: not journals() and not on_disk())
        yield exporter
    finally:
        exporter.shutdown(5000)


def came(server: ScriptedServer) -> dict[tuple[str | None, ...], list[str]]:
    """Names of spans by the headers that say where they go."""
    found: dict[tuple[str | None, ...], list[str]] = {}
    for request in server.to("/v1/traces"):
        place = tuple(request.headers.get(name) for name in HEADERS)
        found.setdefault(place, []).extend(span.name for span in request.spans())
    return {place: sorted(names) for place, names in found.items()}


# Where they go


def test_recovered_spans_go_to_their_tenants(workspace_server: MLflowServer) -> None:
    places = {name: workspace_server.create_experiment("killed agents", workspace=f"team-{name}") for name in "ab"}
    own = workspace_server.create_experiment("the next run's")
    killed(workspace_server.uri, TWO_TENANTS)
    with next_run(workspace_server.uri, experiment="the next run's") as exporter:
        wait_until(lambda: exporter.stats().delivered == 5)
    for name, expected in (("a", ["a ended", "a root"]), ("b", ["b child", "b ended", "b root"])):
        found = workspace_server.search_traces(places[name], workspace=f"team-{name}")
        traces = [workspace_server.trace(each["trace_id"].removeprefix("tr-"), f"team-{name}") for each in found]
        assert sorted(span["name"] for each in traces for span in each["spans"]) == expected  # type: ignore[index]
    assert workspace_server.search_traces(own) == []


def test_recovered_spans_ignore_the_destination_of_the_next_run(server: ScriptedServer) -> None:
    app = "tracer.start_span(os.environ['MLFLOW_EXPERIMENT_NAME']).end()\n"
    routed = app + "with trace_context(run_id='r', experiment_id=7): tracer.start_span('routed').end()\n"
    killed(server.url, routed, MLFLOW_EXPERIMENT_NAME="one", MLFLOW_WORKSPACE="ours")
    killed(server.url, app, MLFLOW_EXPERIMENT_NAME="two")
    killed(server.url, "tracer.start_span('by service').end()", OTEL_SERVICE_NAME="three")
    with next_run(server.url, workspace="other", run_id="other"):
        pass
    # Each of the killed may have begun to send what the one before has left: it comes again then, to the same place.
    assert {place: set(names) for place, names in came(server).items()} == {
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
    killed(server.url, late, MLFLOW_EXPERIMENT_NAME="one", OTEL_RESOURCE_ATTRIBUTES=resource)
    with next_run(server.url):
        pass
    assert came(server) == {("of-resource", "late's", None): ["child", "root"]}


def test_recovered_spans_do_not_change_routes_of_the_next_run(server: ScriptedServer) -> None:
    """A trace that several processes take part in: each has its own say for its spans."""
    ids = "from opentelemetry.trace import *\nparent = SpanContext(7, 8, True, TraceFlags(1))\n"
    spans = "context = set_span_in_context(NonRecordingSpan(parent))\n"
    theirs = "with trace_context(experiment='theirs'): tracer.start_span('recovered', context).end()\n"
    killed(server.url, ids + spans + theirs)
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
    assert came(server) == {(None, "theirs's", None): ["recovered"], (None, "ours's", None): ["live"]}


def test_recovered_spans_without_destination_become_dead_letters(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    killed(server.url, "with trace_context(experiment='theirs'): tracer.start_span('whose').end()\n")
    [path] = journals()
    path.write_bytes(b"\n".join(each for each in path.read_bytes().split(b"\n") if b'"origins"' not in each))
    with next_run(server.url) as exporter:
        wait_until(lambda: exporter.stats().dropped == 1)
    assert came(server) == {}
    [kept] = on_disk("refused")
    header, _, [span] = file_format.decode_file(kept.read_bytes())
    assert "does not name their destination" in header.message
    assert b"whose" in span.body
    assert caplog.text.count("does not name their destination") == 1


def test_journal_that_cannot_be_read_is_kept(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed(server.url, "tracer.start_span('a').end()", MLFLOW_EXPERIMENT_NAME="one")
    broken = threading.Event()
    broken.set()
    read = AbandonedJournal.read_traces

    def traces(orphan: AbandonedJournal) -> list[RecoveredTrace]:
        if broken.is_set():
            raise OSError(5, "Input/output error")
        return read(orphan)

    monkeypatch.setattr(AbandonedJournal, "read_traces", traces)
    exporter = MLflowSpanExporter(tracking_uri=server.url, spool=True)
    wait_until(lambda: "cannot be read" in caplog.text)
    assert journals()
    broken.clear()
    wait_until(lambda: came(server) == {(None, "one's", None): ["a"]})
    exporter.shutdown(2000)


def test_damaged_journal_is_quarantined_and_blocks_nothing(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    killed(server.url, "[tracer.start_span(name).end() for name in 'abc']", MLFLOW_EXPERIMENT_NAME="one")
    [path] = journals()
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"x"'))
    (path.parent / "0-00000000-000000.journal").write_bytes(b"PK\x03\x04" * 50 + b"\n")
    with next_run(server.url):
        pass
    assert came(server) == {(None, "one's", None): ["a", "c"]}
    assert len(on_disk("damaged")) == 2
    message = "1 lines in the journal of a killed process cannot be read. The journal was moved to damaged/."
    assert caplog.text.count(message) == 1
    assert "damaged  0 spans in 2 files" in said_by_status(server.url)


def said_by_status(url: str) -> str:
    variables = {**os.environ, "MLFLOW_TRACKING_URI": url}
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "spool", "status"]
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=200).stdout


@pytest.mark.parametrize("kept", [1, 5, 30])
def test_truncated_last_line_is_not_reported_as_damage(server: ScriptedServer, kept: int) -> None:
    killed(server.url, "[tracer.start_span(name).end() for name in 'ab']", MLFLOW_EXPERIMENT_NAME="one")
    [path] = journals()
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\n", 0, -1) + kept])
    with next_run(server.url):
        pass
    assert came(server) == {(None, "one's", None): ["a"]}
    assert on_disk("damaged") == []


def test_spool_commands_flush_and_purge_journals(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    code = "tracer.start_span('a').end(); tracer.start_span('b').end()"
    killed(server.url, code, MLFLOW_EXPERIMENT_NAME="one")
    assert main_module.main(["spool", "flush"]) == 0
    assert "2 spans sent, 0 queued" in capsys.readouterr().out
    assert came(server) == {(None, "one's", None): ["a", "b"]}
    killed(server.url, code, MLFLOW_EXPERIMENT_NAME="one")
    assert main_module.main(["spool", "purge"]) == 1
    assert "2 spans in 1 files would be deleted" in capsys.readouterr().out
    assert main_module.main(["spool", "purge", "--yes"]) == 0
    assert journals() == []
    assert main_module.main(["spool", "flush"]) == 0
    assert len(server.to("/v1/traces")) == 1


# What is sent


@pytest.mark.parametrize(("noise", "left_out"), [("default", True), ("none", False), ("tests.*", False)])
def test_recovered_traces_pass_the_filter_of_the_killed_process(
    server: ScriptedServer, noise: str, left_out: bool
) -> None:
    """By the setting of the app that was killed: the next one has another."""
    code = """
flask, httpx = (trace.get_tracer(f"opentelemetry.instrumentation.{each}") for each in ("flask", "httpx"))
with flask.start_as_current_span("GET /health"):
    httpx.start_span("GET").end()
with flask.start_as_current_span("POST /ask"):
    tracer.start_span("agent").end()
root = flask.start_span("open")
httpx.start_span("call of an agent's whose root is open", trace.set_span_in_context(root)).end()
remote = trace.SpanContext(7, 8, True, trace.TraceFlags(1))
flask.start_span("part of another's", trace.set_span_in_context(trace.NonRecordingSpan(remote))).end()
"""
    killed(server.url, code, MLFLOW_OTLP_NOISE=noise, MLFLOW_EXPERIMENT_NAME="one")
    with next_run(server.url) as exporter:
        wait_until(lambda: exporter.stats().delivered == (4 if left_out else 6))
        assert exporter.stats().filtered == (2 if left_out else 0)
    health = [] if left_out else ["GET", "GET /health"]
    rest = ["POST /ask", "agent", "call of an agent's whose root is open", "part of another's"]
    assert came(server) == {(None, "one's", None): sorted(health + rest)}


def test_trace_with_acknowledged_spans_is_not_filtered(tmp_path: Path) -> None:
    journal = Journal(lambda: tmp_path / "journal", ProblemLog(), JournalHeader(trace_filter=("tests",)))
    child, root = make_traces(1, children=1)
    for span in (child, root):
        journal.append(span)
    journal.acknowledge([(child.context.trace_id, child.context.span_id)])
    journal.close()
    [orphan] = find_abandoned_journals(tmp_path / "journal", "nobody")
    [trace] = orphan.read_traces()
    orphan.release_files()
    assert [span.name for span in trace.spans.values()] == ["root 0"]
    assert not trace.is_filtered
    trace.has_settled_spans = False
    assert trace.is_filtered


def test_recovered_spans_are_masked_once(server: ScriptedServer) -> None:
    """One that makes pseudonyms would make others of its own: a user would be two."""
    mask = "import hashlib; configure(mask=lambda text: hashlib.sha256(text.encode()).hexdigest())\n"
    killed(server.url, mask + "tracer.start_span('a', attributes={'user.id': 'ada', 'llm.odd': 'b'}).end()\n")
    with next_run(server.url, mask=lambda text: hashlib.sha256(text.encode()).hexdigest()):
        pass
    [span] = [span for request in server.to("/v1/traces") for span in request.spans()]
    values = {each.key: each.value.string_value for each in span.attributes}
    assert values["user.id"] == hashlib.sha256(b"ada").hexdigest()
    assert values["llm.odd"] == hashlib.sha256(b"b").hexdigest()


@pytest.mark.parametrize("mask", ["", "email"], ids=["as it was", "masked"])
def test_recovered_spans_keep_their_dropped_counts(server: ScriptedServer, mask: str) -> None:
    code = """
links = [trace.Link(trace.SpanContext(each, 1, False), {"a": 1, "b": 2, "c": 3}) for each in (1, 2, 3)]
span = tracer.start_span("a", attributes=dict.fromkeys("abcdef", 1), links=links)
for name in "ab":
    span.add_event(name, {"a": 1, "b": 2})
span.end()
"""
    kinds = ("SPAN_ATTRIBUTE", "SPAN_EVENT", "SPAN_LINK", "EVENT_ATTRIBUTE", "LINK_ATTRIBUTE")
    limits = {f"OTEL_{each}_COUNT_LIMIT": "1" for each in kinds}
    killed(server.url, code, **limits, MLFLOW_OTLP_MASK=mask, MLFLOW_EXPERIMENT_NAME="one")
    with next_run(server.url, enrich=False):
        pass
    [span] = [span for request in server.to("/v1/traces") for span in request.spans()]
    assert (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count) == (5, 1, 2)
    assert [each.dropped_attributes_count for each in span.events] == [1]
    assert [each.dropped_attributes_count for each in span.links] == [2]


def test_recovered_unmasked_spans_are_redacted(server: ScriptedServer) -> None:
    """Large payloads are no secrets: they are taken out when they are sent, also of what an app without masks left."""
    code = "tracer.start_span('a', attributes={'input.value': 'data:image/png;base64,' + 'A' * 2_000_000}).end()\n"
    killed(server.url, code + "tracer.start_span('b', attributes={'user.id': 'ada@x.org'}).end()\n")
    with next_run(server.url, mask=["email"]):
        pass
    bodies = b"".join(request.content for request in server.to("/v1/traces"))
    assert b"A" * 1000 not in bodies
    assert b"[email]" in bodies
    assert b"ada@x.org" not in bodies


# The record of what holds for all


@pytest.mark.parametrize(
    "origins",
    [
        JournalHeader(),
        JournalHeader(Destination("w", "é", "7", "r"), is_redacted=True, trace_filter=("default", "my.*")),
    ],
)
def test_journal_header_round_trips(origins: JournalHeader) -> None:
    [record] = parse_lines(encode_line(build_header_record(origins)))
    assert parse_header(record) == origins


def test_journal_holds_no_credential(tmp_path: Path) -> None:
    made = {"tracking_uri": "http://user:planted-one@127.0.0.1:9", "credentials": "planted-two", "spool_dir": tmp_path}
    exporter = MLflowSpanExporter(**made, spool=True, durability="every-span", headers={"x-key": "planted-three"})  # type: ignore[arg-type]
    processor = MLflowSpanProcessor(exporter)
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with trace_context(workspace="w", experiment="e"):
        provider.get_tracer("tests").start_span("a").end()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    names = "".join(map(str, tmp_path.rglob("*")))
    provider.shutdown()
    assert b'"origins"' in written
    assert b"planted" not in written
    assert "planted" not in names


def test_next_run_recovers_only_journals_with_its_credentials(server: ScriptedServer, tmp_path: Path) -> None:
    """Tenants with credentials of their own have an exporter each, and nobody sends another's with its own rights."""
    for name in "ab":
        (tmp_path / name).write_text(f"token-{name}")
        code = f"tracer.start_span('{name}').end()"
        killed(server.url, code, MLFLOW_EXPERIMENT_ID="1", MLFLOW_TRACKING_TOKEN_FILE=str(tmp_path / name))
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
    [orphan] = find_abandoned_journals(tmp_path / "journal", "nobody")
    assert {span.name: trace.is_filtered for trace in orphan.read_traces() for span in trace.spans.values()} == {
        "before": False,
        "after": True,
    }
    orphan.release_files()
