"""The journal of ended spans: round trips of its lines, rotation, and recovery after a kill."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import DroppedCounts, EventData, LinkData, SpanData
from mlflow_otlp_exporter._internal.spool import journal as journal_module
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.journal_format import (
    JournalHeader,
    build_header_record,
    build_owner_record,
    build_span_record,
    encode_line,
    parse_header,
    parse_lines,
    parse_route,
    parse_span,
)
from mlflow_otlp_exporter._internal.spool.recovery import find_abandoned_journals
from support.children import run_in_fork
from support.spans import LIMITED, dropped_counts, make_limited_span, make_spans
from support.traces import make_rejectable_traces, make_traces

VALUES = st.recursive(
    st.text(max_size=9) | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary(max_size=9),
    lambda children: (
        st.lists(children, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=6,
)


ATTRIBUTES = st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=4)
TIMES = st.integers(0, 2**63)
COUNTS = st.just(0) | st.integers(0, 2**31)
CONTEXTS = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1)]),
    st.sampled_from([TraceState(), TraceState([("vendor", "x"), ("other", "a=b")])]),
)
SPANS = st.builds(
    SpanData,
    st.builds(DroppedCounts, COUNTS, COUNTS, COUNTS),
    name=st.text(max_size=9),
    context=CONTEXTS,
    parent=st.none() | CONTEXTS,
    resource=st.sampled_from([Resource({}), Resource({"service.name": "a"}, "https://schema")]),
    attributes=ATTRIBUTES,
    events=st.lists(st.builds(EventData, st.text(max_size=5), ATTRIBUTES, TIMES, COUNTS), max_size=2),
    links=st.lists(st.builds(LinkData, CONTEXTS, ATTRIBUTES, COUNTS), max_size=2),
    kind=st.sampled_from(SpanKind),
    instrumentation_scope=st.sampled_from(
        [None, InstrumentationScope("s"), InstrumentationScope("s", "1", "u", {"k": "v"})]
    ),
    status=st.sampled_from([Status(StatusCode.OK), Status(), Status(StatusCode.ERROR, "why")]),
    start_time=st.none() | TIMES,
    end_time=TIMES,
)


def read_back(span: ReadableSpan) -> ReadableSpan:
    content = encode_line(build_owner_record(span.resource, 0)) + encode_line(
        build_owner_record(span.instrumentation_scope, 1)
    )
    resource_record, scope_record, span_record = parse_lines(content + encode_line(build_span_record(span, 0, 1)))[0]
    return parse_span(span_record, {0: resource_record, 1: scope_record})


def describe_span(span: ReadableSpan) -> dict[str, object]:
    return {
        "name": span.name,
        "context": span.context,
        "parent": span.parent,
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "status": (span.status.status_code, span.status.description),
        "attributes": dict(span.attributes or {}),
        "events": [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events],
        "links": [(link.context, dict(link.attributes or {})) for link in span.links],
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "lost": dropped_counts(span),
    }


@given(SPANS)
def test_span_round_trip_is_lossless(span: ReadableSpan) -> None:
    restored = read_back(span)
    assert describe_span(restored) == describe_span(span)
    assert SpanEncoder().encode(restored) == SpanEncoder().encode(span)


def test_dropped_counts_round_trip_is_lossless() -> None:
    span = make_limited_span()
    restored = read_back(span)
    assert describe_span(restored) == describe_span(span)
    assert SpanEncoder().encode(restored) == SpanEncoder().encode(span)
    assert dropped_counts(restored) == LIMITED


def test_span_record_without_drops_has_no_counts() -> None:
    span = SpanData(
        DroppedCounts(),
        name="a",
        context=SpanContext(1, 2, is_remote=False),
        resource=Resource({}),
        events=[EventData("b", {}, 5, 0)],
        links=[LinkData(SpanContext(3, 4, is_remote=True), {}, 0)],
    )
    context, link = [1, 2, False, 0], [3, 4, True, 0]
    assert build_span_record(span, 0, 1) == [
        *("span", 0, 1, context, None, "a", 0, None, None, {}, [0, None], [["b", 5, {}]], [[link, {}]], None)
    ]


# Records of 0.1.0 before it wrote dropped counts, and of a newer version that adds values.
ROUTE = ["workspace", "experiment", None, None]
SPAN = ["span", 0, 1, [1, 2, False, 1], None, "a", 0, 5, 6, {"b": "c"}, [0, None]]
LINK = [3, 4, True, 0]
OLDER_RECORDS: list[list[Any]] = [
    ["owner", 0, {"service.name": "a"}, ""],
    ["owner", 1, "scope", "1", None, {}],
    [*SPAN, [["d", 5, {}]], [[LINK, {}]], ROUTE],
]
NEWER_RECORDS: list[list[Any]] = [
    [*OLDER_RECORDS[0], "?"],
    [*OLDER_RECORDS[1], {"?": "?"}],
    [*SPAN, [["d", 5, {}, 7, "?"]], [[[*LINK, [], "?"], {}, 8, ["?"]]], ROUTE, [1, 2, 3, "?"], "?"],
]
NEWER_RECORDS_WITHOUT_DROPPED = [*OLDER_RECORDS[:2], [*OLDER_RECORDS[2], None, "?"]]


@pytest.mark.parametrize(
    ("records", "dropped"),
    [
        (OLDER_RECORDS, (0, 0, 0, 0, 0)),
        (NEWER_RECORDS, (1, 2, 3, 7, 8)),
        (NEWER_RECORDS_WITHOUT_DROPPED, (0, 0, 0, 0, 0)),
    ],
    ids=["before", "later", "later, with nothing dropped"],
)
def test_journals_of_other_versions_are_parsed(records: list[list[Any]], dropped: tuple[int, ...]) -> None:
    resource_record, scope_record, record = parse_lines(b"".join(map(encode_line, records)))[0]
    span = parse_span(record, {0: resource_record, 1: scope_record})
    assert dropped_counts(span) == dropped
    assert describe_span(span) == describe_span(parse_span(OLDER_RECORDS[2], dict(enumerate(OLDER_RECORDS)))) | {
        "lost": dropped
    }
    assert parse_route(record) == tuple(ROUTE)


def test_header_of_newer_version_is_parsed() -> None:
    assert parse_header([*build_header_record(JournalHeader(is_redacted=True)), "?"]) == JournalHeader(is_redacted=True)


def test_route_of_unknown_shape_raises() -> None:
    """With a partial route, another tenant might get the spans."""
    with pytest.raises(TypeError):
        parse_header(["origins", [*ROUTE, "?"], False, []])
    with pytest.raises(TypeError):
        parse_route([*OLDER_RECORDS[2][:-1], [*ROUTE, "?"]])


def test_malformed_spans_round_trip_keeps_name_and_context() -> None:
    for span in [*make_rejectable_traces(), *make_traces(1, children=1)]:
        restored = read_back(span)
        assert (restored.name.encode("utf-8", "replace"), restored.context) == (
            span.name.encode("utf-8", "replace"),
            span.context,
        )


@given(st.data())
def test_damaged_line_affects_no_other_line(data: st.DataObject) -> None:
    lines = [encode_line(["span", number, "x" * 20]) for number in range(4)]
    damaged = bytearray(lines[1])
    position = data.draw(st.integers(1, len(damaged) - 2))
    damaged[position] = data.draw(st.sampled_from(b"\n\x00\xff ax0").filter(lambda byte: byte != damaged[position]))
    content = lines[0] + bytes(damaged[: data.draw(st.integers(1, len(damaged)))]) + lines[2] + lines[3]
    assert [record[1] for record in parse_lines(content)[0] if record[1] != 1] == [0, 2, 3]


def test_endless_nesting_raises_value_error() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested"):
        encode_line(endless)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    journal = Journal(lambda: folder, ProblemLog())
    yield journal
    journal.close()


def read_names(folder: Path) -> list[str]:
    names = []
    for abandoned in find_abandoned_journals(folder, "no process", {}):
        names += [span.name for trace in abandoned.read_traces() for span in trace.spans.values()]
        abandoned.release_files()
    return sorted(names)


def get_key(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def run_and_kill(folder: Path, code: str) -> None:
    """Run code with a journal `j` and spans `s`, and kill the process with -9."""
    start = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mlflow_otlp_exporter._internal.spool.journal import Journal\n"
        "from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog\n"
        "from support.spans import make_spans\n"
        "j = Journal(lambda: Path(sys.argv[1]), ProblemLog()); s = make_spans('a', 'b', 'c')\n"
        "key = lambda span: (span.context.trace_id, span.context.span_id)\n"
        "[j.append(span) for span in s]\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", start + code + "\nos.kill(os.getpid(), signal.SIGKILL)", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (-signal.SIGKILL, "")


def test_spans_ended_before_a_kill_are_recovered(folder: Path) -> None:
    folder.mkdir()
    run_and_kill(folder, "")
    assert read_names(folder) == ["a", "b", "c"]
    run_and_kill(folder, "j.acknowledge([key(s[0])])")
    assert read_names(folder) == ["a", "b", "b", "c", "c"]
    for abandoned in find_abandoned_journals(folder, "no process", {}):
        abandoned.remove_files()
    assert list(folder.iterdir()) == []


def test_journal_of_running_process_is_not_abandoned(journal: Journal, folder: Path) -> None:
    journal.append(make_spans("a")[0])
    assert read_names(folder) == []
    assert list(find_abandoned_journals(folder, journal.unique, {})) == []
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o700, 0o600]
    journal.close()
    assert read_names(folder) == ["a"]


def test_append_of_several_spans_writes_all_and_fills_no_file_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may be as large as one append more, because a larger one is not read after a kill."""
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 10)
    journal = Journal(lambda: tmp_path, ProblemLog())
    for number in range(3):
        assert journal.append(*make_spans(f"a{number}", f"b{number}"))
    files = sorted(tmp_path.glob("*.journal"))
    assert [path.read_text().count('["span",') for path in files] == [2, 2, 2]
    journal.close()


def test_rotate_removes_full_files_without_pending_spans(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 10)
    a, b, c = make_spans("a", "b", "c")
    for span in (a, b, c):
        journal.append(span)
        journal.rotate()
    assert len(list(folder.iterdir())) == 3
    journal.acknowledge([get_key(b)])
    journal.rotate()
    assert len(list(folder.iterdir())) == 3  # the oldest first only
    journal.acknowledge([get_key(a)])
    journal.rotate()
    assert len(list(folder.iterdir())) == 1
    journal.close()
    assert read_names(folder) == ["c"]


def test_close_removes_files_when_all_spans_are_acknowledged(journal: Journal, folder: Path) -> None:
    spans = make_spans("a", "b")
    for span in spans:
        journal.append(span)
    journal.acknowledge(map(get_key, spans))
    journal.acknowledge(map(get_key, make_spans("unknown")))
    journal.close()
    assert list(folder.iterdir()) == []


def test_append_in_threads_during_rotation_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 2000)
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 10_000)
    journal = Journal(lambda: folder, ProblemLog())
    pending: list[ReadableSpan] = []
    spans = make_spans(*map(str, range(2000)))
    stop = threading.Event()

    def write(part: list[ReadableSpan]) -> None:
        for number, span in enumerate(part):
            journal.append(span)
            if number % 5:
                journal.acknowledge([get_key(span)])
            else:
                pending.append(span)

    def rotate() -> None:
        while not stop.is_set():
            journal.rotate()

    rotator = threading.Thread(target=rotate)
    writers = [threading.Thread(target=write, args=(spans[start::4],)) for start in range(4)]
    for thread in (rotator, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    rotator.join()
    journal.close()
    assert read_names(folder) == sorted(span.name for span in pending)


def test_forked_child_writes_its_own_files(journal: Journal, folder: Path) -> None:
    a, b, c = make_spans("a", "b", "c")
    journal.append(a)

    def child() -> bool:
        journal.append(b)
        return len(list(folder.iterdir())) == 2

    assert run_in_fork(child)
    journal.append(c)
    assert read_names(folder) == ["b"]


def test_unwritable_folder_is_logged_once_and_recovers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    place = [tmp_path / "file" / "journal"]
    journal = Journal(lambda: place[0], ProblemLog())
    a, b = make_spans("a", "b")
    for _ in range(5):
        journal.append(a)
        journal.rotate()
    journal.rotate()  # nothing was written since then
    assert len(caplog.messages) == 1
    assert "in memory only" in caplog.text
    place[0] = tmp_path / "journal"
    journal.append(b)
    journal.rotate()
    assert "again" in caplog.messages[-1]
    journal.close()
    assert read_names(place[0]) == ["b"]


def test_removed_folder_is_created_again(journal: Journal, folder: Path) -> None:
    a, b = make_spans("a", "b")
    journal.append(a)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    journal.rotate()
    journal.append(b)
    journal.close()
    assert read_names(folder) == ["b"]


def test_append_malformed_span_does_not_raise(journal: Journal) -> None:
    class Odd:
        context = None

    journal.append(Odd())  # type: ignore[arg-type]
    journal.rotate()


def test_journal_above_file_limit_pauses_and_resumes(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 10)
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 3)
    spans = make_spans(*map(str, range(10)))
    for span in spans:
        journal.append(span)
        journal.rotate()
    assert len(list(folder.iterdir())) == 4
    assert "too many spans in it have no outcome" in caplog.text
    journal.acknowledge(map(get_key, spans))
    journal.rotate()
    journal.append(spans[0])
    journal.rotate()
    assert "again" in caplog.messages[-1]


CRAFTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, 2**64, "\ud800", "0" * 5000]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


def mutate(data: st.DataObject, value: Any) -> Any:
    """Replace one of the values inside a record, or remove it."""
    if not isinstance(value, (list, dict)) or not value or data.draw(st.integers(0, 3)) == 0:
        return data.draw(CRAFTED)
    key = data.draw(st.sampled_from(range(len(value)) if isinstance(value, list) else sorted(value)))
    if data.draw(st.integers(0, 5)) == 0:
        del value[key]
    else:
        value[key] = mutate(data, value[key])
    return value


@given(st.data())
def test_mutated_records_raise_nothing_and_keep_other_spans(data: st.DataObject) -> None:
    intact, span = make_spans("a", "b")
    owners = [build_owner_record(intact.resource, 0), build_owner_record(intact.instrumentation_scope, 1)]
    header = build_header_record(JournalHeader(Destination("w", experiment="e"), trace_filter=("http",)))
    lines = [encode_line(record) for record in (header, *owners, build_span_record(intact, 0, 1))]
    for record in (header, *owners, build_span_record(span, 0, 1), ["gone", [[1, 2]]]):
        mutated = mutate(data, json.loads(encode_line(record).split(b" ", 1)[1]))
        lines.append(encode_line(mutated))
    lines.append(data.draw(st.binary(max_size=30)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "x-000000.journal").write_bytes(b"".join(lines))
        [journal] = find_abandoned_journals(folder, "", {})
        traces = journal.read_traces()
        journal.release_files()
    for trace in traces:
        assert trace.is_filtered in (True, False)
        assert trace.header is None or trace.header.destination.headers(None) is not None
    assert intact.context.span_id in {span_id for trace in traces for span_id in trace.spans}


@pytest.mark.parametrize("name", [7, None, ["a"], {}])
def test_span_whose_name_is_no_text_is_damaged(folder: Path, name: Any) -> None:
    folder.mkdir()
    a, b = make_spans("a", "b")
    record = build_span_record(b, 0, 1)
    record[5] = name
    records = [
        build_owner_record(a.resource, 0),
        build_owner_record(a.instrumentation_scope, 1),
        build_span_record(a, 0, 1),
        record,
    ]
    (folder / "x-000000.journal").write_bytes(b"".join(map(encode_line, records)))
    [journal] = find_abandoned_journals(folder, "", {})
    assert [span.name for trace in journal.read_traces() for span in trace.spans.values()] == ["a"]
    assert journal.damaged_line_count == 1
    journal.release_files()


def test_files_with_foreign_content_are_ignored(folder: Path) -> None:
    folder.mkdir()
    (folder / "x-000000.journal").write_bytes(
        b"\x00\xff\n" + encode_line(["gone", 5]) + encode_line(["span", 1]) + encode_line(["what"])
    )
    (folder / "notes.txt").write_text(json.dumps({}))
    assert read_names(folder) == []
