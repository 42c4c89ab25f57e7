"""What roots say of their traces, and what MLflow is asked for: decisions only."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.trace_metadata import (
    TraceMetadata,
    diff_metadata,
    prompt_links,
    read_root,
)
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from support.traces import ended

SESSION, USER, RUN = "mlflow.trace.session", "mlflow.trace.user", "mlflow.sourceRun"
STORED: Mapping[str, Any] = {
    "trace_id": "tr-" + "0" * 31 + "7",
    "request_time": "2026-11-22T15:31:58.349Z",
    "execution_duration": "0.103s",
    "state": "OK",
    "trace_metadata": {"mlflow.trace.tokenUsage": "{}"},
    "tags": {"mlflow.trace.spansLocation": "TRACKING_STORE"},
}
OLD = (3, 10, 1)
END = 1795361518452
TOLD = TraceMetadata(7, {"mlflow.traceName": "agent", "a": "b"}, {SESSION: "s-1", USER: "ada"})


def root(attributes: Mapping[str, Any]) -> EncodedSpan:
    (span,) = ended(1, attributes=lambda *_: attributes)
    return SpanEncoder().encode(span)


def told(attributes: Mapping[str, Any], *, run_id: str | None = None, everything: bool = False) -> TraceMetadata:
    return read_root(root(attributes), run_id=run_id, everything=everything)


def asked(body: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Metadata and tags of a request's body."""
    assert body is not None
    metadata, tags = ({each["key"]: each["value"] for each in body[name]} for name in ("request_metadata", "tags"))
    return metadata, tags


@pytest.mark.parametrize(
    ("attributes", "tags", "metadata"),
    [
        ({}, {}, {}),
        ({"mlflow.traceTag.mlflow.traceName": "agent"}, {"mlflow.traceName": "agent"}, {}),
        ({"mlflow.traceTag.a": "b", "mlflow.traceTag.": "x", "mlflow.traceTag.c": ""}, {"a": "b"}, {}),
        ({"mlflow.traceTag.n": 3}, {"n": "3"}, {}),
        ({"mlflow.traceTag." + "k" * 251: "v", "mlflow.traceTag.long": "v" * 5000}, {"long": "v" * 4096}, {}),
        ({"session.id": "s-1", "user.id": "ada"}, {}, {SESSION: "s-1", USER: "ada"}),
        ({"session.id": "s" * 300}, {}, {SESSION: "s" * 250}),
        ({"gen_ai.conversation.id": "c"}, {}, {SESSION: "c"}),
        ({"gen_ai.conversation.id": "c", "session.id": "s"}, {}, {SESSION: "s"}),
        ({"session.id": "s", "gen_ai.conversation.id": "c"}, {}, {SESSION: "s"}),
        ({"metadata": '{"release": "2"}', "input.value": "hi"}, {}, {}),
    ],
)
def test_root_says_tags_session_and_user(
    attributes: Mapping[str, Any], tags: dict[str, str], metadata: dict[str, str]
) -> None:
    found = told(attributes)
    assert (dict(found.tags), dict(found.metadata)) == (tags, metadata)


def test_run_is_told() -> None:
    assert told({}, run_id="r").metadata == {RUN: "r"}


@pytest.mark.parametrize(
    ("program", "source"),
    [
        ("/home/ada/app.py", "app.py"),
        ("/srv/pkg/__main__.py", "pkg"),
        ("", "<console>"),
        ("-c", "<console>"),
    ],
)
def test_everything_has_the_source_and_the_metadata(program: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    own = json.dumps({"release": "2.3", "depth": 3, "more": {"a": 1}, "mlflow.sourceRun": "forged", SESSION: "forged"})
    found = told({"metadata": own, "session.id": "s"}, run_id="r", everything=True)
    assert found.metadata == {
        "release": "2.3",
        "depth": "3",
        "more": '{"a": 1}',
        SESSION: "s",
        RUN: "r",
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL",
    }


@pytest.mark.parametrize("own", ["no json", "[1]", '"text"', "null"])
def test_metadata_that_is_no_object_is_left_out(own: str) -> None:
    assert set(told({"metadata": own}, everything=True).metadata) == {"mlflow.source.name", "mlflow.source.type"}


def test_a_hundred_tags_are_told_at_most() -> None:
    assert len(told({f"mlflow.traceTag.t{number}": "v" for number in range(120)}).tags) == 100


def test_what_is_lacking_is_asked_for_and_end_and_state_are_those_that_are_stored() -> None:
    body = diff_metadata(TOLD, STORED, OLD)
    assert asked(body) == ({SESSION: "s-1", USER: "ada"}, {"mlflow.traceName": "agent", "a": "b"})
    assert body is not None
    assert (body["request_id"], body["timestamp_ms"], body["status"]) == (STORED["trace_id"], END, "OK")


@pytest.mark.parametrize(
    ("time", "duration", "end"),
    [
        ("2026-11-22T15:31:58.349Z", "0.103s", END),
        ("2026-11-22T15:31:58Z", "0s", 1795361518000),
        ("2026-11-22T15:31:58.349000Z", "1.5s", 1795361519849),
        ("2026-11-22T15:31:58.349Z", "-1795361518.349s", 0),  # a root without an end
    ],
)
def test_end_is_told_to_the_millisecond(time: str, duration: str, end: int) -> None:
    body = diff_metadata(TOLD, {**STORED, "request_time": time, "execution_duration": duration}, OLD)
    assert body is not None
    assert body["timestamp_ms"] == end


@pytest.mark.parametrize(
    "lacking",
    [
        {"execution_duration": None},
        {"request_time": None},
        {"request_time": "yesterday"},
        {"execution_duration": "long"},
        {"request_time": "2026-99-22T15:31:58Z"},
    ],
)
def test_nothing_is_asked_for_where_end_is_not_known(lacking: Mapping[str, Any]) -> None:
    assert diff_metadata(TOLD, {**STORED, **lacking}, OLD) is None


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("OK", "OK"),
        ("ERROR", "ERROR"),
        ("IN_PROGRESS", "IN_PROGRESS"),
        ("STATE_UNSPECIFIED", "TRACE_STATUS_UNSPECIFIED"),
        (None, "TRACE_STATUS_UNSPECIFIED"),
    ],
)
def test_state_is_said_again(state: str | None, status: str) -> None:
    body = diff_metadata(TOLD, {**STORED, "state": state}, OLD)
    assert body is not None
    assert body["status"] == status


def test_what_is_there_stays() -> None:
    stored = {**STORED, "tags": {"a": "theirs"}, "trace_metadata": {SESSION: "theirs"}}
    assert asked(diff_metadata(TOLD, stored, OLD)) == ({USER: "ada"}, {"mlflow.traceName": "agent"})


@pytest.mark.parametrize(("version", "name"), [((3, 12), None), ((3, 13, 0), "agent"), ((3, 14), None), (None, None)])
def test_tags_of_a_neighbour_are_put_right(version: tuple[int, ...] | None, name: str | None) -> None:
    stored = {**STORED, "tags": {"mlflow.traceName": "another", "a": "b"}}
    assert asked(diff_metadata(TOLD, stored, version))[1] == ({"mlflow.traceName": name} if name else {})


@pytest.mark.parametrize(
    ("found", "quoted", "plain"),
    [
        ('"s-1"', True, "s-1"),
        ('"theirs"', True, "theirs"),  # the first session of a trace counts, whoever sent it
        ('"with \\"quotes\\""', True, 'with "quotes"'),
        ('"s-1"', False, None),
        ("s-1", True, None),
        ('"', True, None),
        ('""', True, None),
        ('"no" json"', True, None),
    ],
)
def test_quotes_of_older_servers_are_taken_away(found: str, quoted: bool, plain: str | None) -> None:
    stored = {**STORED, "trace_metadata": {SESSION: found}}
    assert asked(diff_metadata(TOLD, stored, OLD if quoted else (3, 14)))[0].get(SESSION) == plain


def test_nothing_is_asked_for_where_nothing_is_lacking() -> None:
    stored = {**STORED, "tags": dict(TOLD.tags), "trace_metadata": dict(TOLD.metadata)}
    assert diff_metadata(TOLD, stored, OLD) is None


def test_record_without_tags_and_metadata_lacks_all() -> None:
    stored = {**STORED, "tags": None, "trace_metadata": []}
    assert asked(diff_metadata(TOLD, stored, OLD)) == (dict(TOLD.metadata), dict(TOLD.tags))


# Prompts

PROMPTS = "mlflow.traceTag.mlflow.linkedPrompts"


@pytest.mark.parametrize(
    ("said", "prompts"),
    [
        ('[{"name": "greeting", "version": "2"}]', (("greeting", "2"),)),
        ('[{"name": "a", "version": 1}, {"name": "b/c", "version": "10"}]', (("a", "1"), ("b/c", "10"))),
        ('[{"name": "a", "version": "1"}, {"name": "a", "version": 1}]', (("a", "1"),)),
        # What MLflow's registry cannot have: it answers 500 to a version that is no number.
        ('[{"name": "a", "version": "latest"}, {"name": "b", "version": "0"}, {"name": "c"}]', ()),
        ('[{"name": "", "version": "1"}, {"name": 3, "version": "1"}, {"version": "1"}, "a/1", null]', ()),
        ('[{"name": "a", "version": "12345678901"}]', ()),
        ('{"name": "a", "version": "1"}', ()),
        ("no json", ()),
        ("", ()),
        (
            json.dumps([{"name": "p", "version": each} for each in range(1, 150)]),
            tuple(("p", str(n)) for n in range(1, 101)),
        ),
    ],
)
def test_root_says_which_prompts_were_used(said: str, prompts: tuple[tuple[str, str], ...]) -> None:
    assert told({PROMPTS: said}).prompts == prompts


@pytest.mark.parametrize(
    ("version", "links_them"), [((3, 6, 0), False), ((3, 8, 1), True), ((3, 17, 2), True), (None, True)]
)
def test_prompts_are_linked_where_the_server_can(version: tuple[int, ...] | None, links_them: bool) -> None:
    found = prompt_links(TOLD._replace(prompts=(("greeting", "2"), ("b", "1"))), version)
    wanted = [{"name": "greeting", "version": "2"}, {"name": "b", "version": "1"}]
    assert found == ({"trace_id": TOLD.name, "prompt_versions": wanted} if links_them else None)
    assert prompt_links(TOLD, version) is None
