"""The journal of every span: what it has survives a killed process, and what has an outcome is forgotten."""

import json
import os
import signal
import subprocess
import sys
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
from mlflow_otlp_exporter._internal.model.span_data import DroppedCounts, EventData, LinkData, SpanData
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
from support.children import in_child
from support.spans import LIMITED, finished, limited, lost
from support.traces import ended, poisonous

values = st.recursive(
    st.text(max_size=9) | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


attributes = st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=4)
times = st.integers(0, 2**63)
counts = st.just(0) | st.integers(0, 2**31)
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1)]),
    st.sampled_from([TraceState(), TraceState([("vendor", "x"), ("other", "a=b")])]),
)
spans = st.builds(
    SpanData,
    st.builds(DroppedCounts, counts, counts, counts),
    name=st.text(max_size=9),
    context=contexts,
    parent=st.none() | contexts,
    resource=st.sampled_from([Resource({}), Resource({"service.name": "a"}, "https://schema")]),
    attributes=attributes,
    events=st.lists(st.builds(EventData, st.text(max_size=5), attributes, times, counts), max_size=2),
    links=st.lists(st.builds(LinkData, contexts, attributes, counts), max_size=2),
    kind=st.sampled_from(SpanKind),
    instrumentation_scope=st.sampled_from(
        [None, InstrumentationScope("s"), InstrumentationScope("s", "1", "u", {"k": "v"})]
    ),
    status=st.sampled_from([Status(StatusCode.OK), Status(), Status(StatusCode.ERROR, "why")]),
    start_time=st.none() | times,
    end_time=times,
)


def read_back(span: ReadableSpan) -> ReadableSpan:
    content = encode_line(build_owner_record(span.resource, 0)) + encode_line(
        build_owner_record(span.instrumentation_scope, 1)
    )
    owner, scope, found = parse_lines(content + encode_line(build_span_record(span, 0, 1)))
    return parse_span(found, {0: owner, 1: scope})


def all_of(span: ReadableSpan) -> dict[str, object]:
    """All that a span tells of itself."""
    return {
        "name": span.name,
        "context": span.context,
        "parent": span.parent,
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "status": (span.status.status_code, span.status.description),
        "attributes": dict(span.attributes or {}),
        "events": [(each.name, each.timestamp, dict(each.attributes or {})) for each in span.events],
        "links": [(each.context, dict(each.attributes or {})) for each in span.links],
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "lost": lost(span),
    }


@given(spans)
def test_a_span_comes_back_as_it_was(span: ReadableSpan) -> None:
    again = read_back(span)
    assert all_of(again) == all_of(span)
    assert SpanEncoder().encode(again) == SpanEncoder().encode(span)


def test_what_the_sdks_limits_have_cost_comes_back() -> None:
    span = limited()
    again = read_back(span)
    assert all_of(again) == all_of(span)
    assert SpanEncoder().encode(again) == SpanEncoder().encode(span)
    assert lost(again) == LIMITED


def test_where_nothing_was_dropped_nothing_is_written_of_it() -> None:
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


# What 0.1.0 has written before it kept what was dropped, and what a version to come may add.
ROUTE = ["workspace", "experiment", None, None]
SPAN = ["span", 0, 1, [1, 2, False, 1], None, "a", 0, 5, 6, {"b": "c"}, [0, None]]
LINK = [3, 4, True, 0]
BEFORE: list[list[Any]] = [
    ["owner", 0, {"service.name": "a"}, ""],
    ["owner", 1, "scope", "1", None, {}],
    [*SPAN, [["d", 5, {}]], [[LINK, {}]], ROUTE],
]
LATER: list[list[Any]] = [
    [*BEFORE[0], "?"],
    [*BEFORE[1], {"?": "?"}],
    [*SPAN, [["d", 5, {}, 7, "?"]], [[[*LINK, [], "?"], {}, 8, ["?"]]], ROUTE, [1, 2, 3, "?"], "?"],
]
SILENT = [*BEFORE[:2], [*BEFORE[2], None, "?"]]


@pytest.mark.parametrize(
    ("written", "dropped"),
    [(BEFORE, (0, 0, 0, 0, 0)), (LATER, (1, 2, 3, 7, 8)), (SILENT, (0, 0, 0, 0, 0))],
    ids=["before", "later", "later, with nothing dropped"],
)
def test_other_versions_journals_are_read(written: list[list[Any]], dropped: tuple[int, ...]) -> None:
    owner, scope, record = parse_lines(b"".join(map(encode_line, written)))
    span = parse_span(record, {0: owner, 1: scope})
    assert lost(span) == dropped
    assert all_of(span) == all_of(parse_span(BEFORE[2], dict(enumerate(BEFORE)))) | {"lost": dropped}
    assert parse_route(record) == tuple(ROUTE)


def test_what_another_version_says_of_all_is_read() -> None:
    assert parse_header([*build_header_record(JournalHeader(is_redacted=True)), "?"]) == JournalHeader(is_redacted=True)


def test_a_destination_of_another_kind_is_no_destination() -> None:
    """With a part of it another tenant might get the spans."""
    with pytest.raises(TypeError):
        parse_header(["origins", [*ROUTE, "?"], False, []])
    with pytest.raises(TypeError):
        parse_route([*BEFORE[2][:-1], [*ROUTE, "?"]])


def test_odd_spans_come_back() -> None:
    for span in [*poisonous(), *ended(1, children=1)]:
        again = read_back(span)
        assert (again.name.encode("utf-8", "replace"), again.context) == (
            span.name.encode("utf-8", "replace"),
            span.context,
        )


@given(st.data())
def test_a_damaged_line_spoils_no_other(data: st.DataObject) -> None:
    lines = [encode_line(["span", number, "x" * 20]) for number in range(4)]
    broken = bytearray(lines[1])
    position = data.draw(st.integers(1, len(broken) - 2))
    broken[position] = data.draw(st.sampled_from(b"\n\x00\xff ax0").filter(lambda byte: byte != broken[position]))
    content = lines[0] + bytes(broken[: data.draw(st.integers(1, len(broken)))]) + lines[2] + lines[3]
    assert [found[1] for found in parse_lines(content) if found[1] != 1] == [0, 2, 3]


def test_endless_nesting_is_told() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested"):
        encode_line(endless)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = Journal(lambda: folder, ProblemLog())
    yield made
    made.close()


def names(folder: Path) -> list[str]:
    found = []
    for orphan in find_abandoned_journals(folder, "nobody"):
        found += [span.name for trace in orphan.read_traces() for span in trace.spans.values()]
        orphan.release_files()
    return sorted(found)


def key(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def killed(folder: Path, code: str) -> None:
    """Runs code with a journal `j` and spans `s`, and kills it with -9."""
    start = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mlflow_otlp_exporter._internal.spool.journal import Journal\n"
        "from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog\n"
        "from support.spans import finished\n"
        "j = Journal(lambda: Path(sys.argv[1]), ProblemLog()); s = finished('a', 'b', 'c')\n"
        "key = lambda span: (span.context.trace_id, span.context.span_id)\n"
        "[j.append(span) for span in s]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + code + "\nos.kill(os.getpid(), signal.SIGKILL)", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


def test_what_ended_before_a_kill_is_found(folder: Path) -> None:
    folder.mkdir()
    killed(folder, "")
    assert names(folder) == ["a", "b", "c"]
    killed(folder, "j.acknowledge([key(s[0])])")
    assert names(folder) == ["a", "b", "b", "c", "c"]
    for orphan in find_abandoned_journals(folder, "nobody"):
        orphan.remove_files()
    assert list(folder.iterdir()) == []


def test_the_living_are_left_alone(journal: Journal, folder: Path) -> None:
    journal.append(finished("a")[0])
    assert names(folder) == []
    assert list(find_abandoned_journals(folder, journal.unique)) == []
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o700, 0o600]
    journal.close()
    assert names(folder) == ["a"]


def test_a_file_goes_when_it_is_full_and_nothing_in_it_waits(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 10)
    a, b, c = finished("a", "b", "c")
    for span in (a, b, c):
        journal.append(span)
        journal.rotate()
    assert len(list(folder.iterdir())) == 3
    journal.acknowledge([key(b)])
    journal.rotate()
    assert len(list(folder.iterdir())) == 3  # in their order only
    journal.acknowledge([key(a)])
    journal.rotate()
    assert len(list(folder.iterdir())) == 1
    journal.close()
    assert names(folder) == ["c"]


def test_nothing_is_left_when_all_have_an_outcome(journal: Journal, folder: Path) -> None:
    found = finished("a", "b")
    for span in found:
        journal.append(span)
    journal.acknowledge(map(key, found))
    journal.acknowledge(map(key, finished("unknown")))
    journal.close()
    assert list(folder.iterdir()) == []


def test_many_threads_write_while_files_come_and_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 2000)
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 10_000)
    journal = Journal(lambda: folder, ProblemLog())
    kept: list[ReadableSpan] = []
    found = finished(*map(str, range(2000)))
    stop = threading.Event()

    def write(part: list[ReadableSpan]) -> None:
        for number, span in enumerate(part):
            journal.append(span)
            if number % 5:
                journal.acknowledge([key(span)])
            else:
                kept.append(span)

    def turn() -> None:
        while not stop.is_set():
            journal.rotate()

    turner = threading.Thread(target=turn)
    writers = [threading.Thread(target=write, args=(found[start::4],)) for start in range(4)]
    for thread in (turner, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    turner.join()
    journal.close()
    assert names(folder) == sorted(span.name for span in kept)


def test_a_forked_child_writes_to_files_of_its_own(journal: Journal, folder: Path) -> None:
    a, b, c = finished("a", "b", "c")
    journal.append(a)

    def child() -> bool:
        journal.append(b)
        return len(list(folder.iterdir())) == 2

    assert in_child(child)
    journal.append(c)
    assert names(folder) == ["b"]


def test_where_nothing_can_be_written_one_line_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    place = [tmp_path / "file" / "journal"]
    journal = Journal(lambda: place[0], ProblemLog())
    a, b = finished("a", "b")
    for _ in range(5):
        journal.append(a)
        journal.rotate()
    assert len(caplog.messages) == 1
    assert "in memory only" in caplog.text
    place[0] = tmp_path / "journal"
    journal.append(b)
    journal.rotate()
    assert "again" in caplog.messages[-1]
    journal.close()
    assert names(place[0]) == ["b"]


def test_a_removed_folder_is_made_again(journal: Journal, folder: Path) -> None:
    a, b = finished("a", "b")
    journal.append(a)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    journal.rotate()
    journal.append(b)
    journal.close()
    assert names(folder) == ["b"]


def test_an_odd_span_does_not_reach_the_app(journal: Journal) -> None:
    class Odd:
        context = None

    journal.append(Odd())  # type: ignore[arg-type]
    journal.rotate()


def test_the_journal_is_bounded(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_SEGMENT_BYTES", 10)
    monkeypatch.setattr(journal_module, "_MAX_SEGMENTS", 3)
    found = finished(*map(str, range(10)))
    for span in found:
        journal.append(span)
        journal.rotate()
    assert len(list(folder.iterdir())) == 4
    assert "too many spans in it have no outcome" in caplog.text
    journal.acknowledge(map(key, found))
    journal.rotate()
    journal.append(found[0])
    journal.rotate()
    assert "again" in caplog.messages[-1]


def test_files_that_are_no_journal_are_passed_over(folder: Path) -> None:
    folder.mkdir()
    (folder / "x-000000.journal").write_bytes(
        b"\x00\xff\n" + encode_line(["gone", 5]) + encode_line(["span", 1]) + encode_line(["what"])
    )
    (folder / "notes.txt").write_text(json.dumps({}))
    assert names(folder) == []
