"""Trace metadata in root spans, and the bodies of the requests that update MLflow's records."""

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
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from support.traces import make_traces

SESSION, USER, RUN = "mlflow.trace.session", "mlflow.trace.user", "mlflow.sourceRun"
RECORD: Mapping[str, Any] = {
    "trace_id": "tr-" + "0" * 31 + "7",
    "request_time": "2026-11-22T15:31:58.349Z",
    "execution_duration": "0.103s",
    "state": "OK",
    "trace_metadata": {"mlflow.trace.tokenUsage": "{}"},
    "tags": {"mlflow.trace.spansLocation": "TRACKING_STORE"},
}
OLD = (3, 10, 1)
END = 1795361518452
UPDATE = TraceMetadata(7, {"mlflow.traceName": "agent", "a": "b"}, {SESSION: "s-1", USER: "ada"})


def root(attributes: Mapping[str, Any]) -> EncodedSpan:
    (span,) = make_traces(1, attributes=lambda *_: attributes)
    return SpanEncoder().encode(span)


def read_metadata(
    attributes: Mapping[str, Any], *, run_id: str | None = None, everything: bool = False
) -> TraceMetadata:
    return read_root(root(attributes), run_id=run_id, everything=everything)


def parse_body(body: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Metadata and tags of a request's body."""
    assert body is not None
    metadata, tags = ({pair["key"]: pair["value"] for pair in body[name]} for name in ("request_metadata", "tags"))
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
def test_read_root_with_attributes_returns_tags_session_and_user(
    attributes: Mapping[str, Any], tags: dict[str, str], metadata: dict[str, str]
) -> None:
    result = read_metadata(attributes)
    assert (dict(result.tags), dict(result.metadata)) == (tags, metadata)


def test_read_root_with_run_returns_it() -> None:
    assert read_metadata({}, run_id="r").metadata == {RUN: "r"}


@pytest.mark.parametrize(
    ("program", "source"),
    [
        ("/home/ada/app.py", "app.py"),
        ("/srv/pkg/__main__.py", "pkg"),
        ("", "<console>"),
        ("-c", "<console>"),
    ],
)
def test_read_root_with_everything_adds_source_and_metadata(
    program: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    user_metadata = json.dumps(
        {"release": "2.3", "depth": 3, "more": {"a": 1}, "mlflow.sourceRun": "forged", SESSION: "forged"}
    )
    metadata = read_metadata({"metadata": user_metadata, "session.id": "s"}, run_id="r", everything=True)
    assert metadata.metadata == {
        "release": "2.3",
        "depth": "3",
        "more": '{"a": 1}',
        SESSION: "s",
        RUN: "r",
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL",
    }


@pytest.mark.parametrize("user_metadata", ["no json", "[1]", '"text"', "null"])
def test_read_root_with_invalid_metadata_ignores_it(user_metadata: str) -> None:
    assert set(read_metadata({"metadata": user_metadata}, everything=True).metadata) == {
        "mlflow.source.name",
        "mlflow.source.type",
    }


def test_read_root_with_many_tags_keeps_hundred() -> None:
    assert len(read_metadata({f"mlflow.traceTag.t{number}": "v" for number in range(120)}).tags) == 100


def test_diff_metadata_with_missing_values_adds_them_and_keeps_end_and_state() -> None:
    body = diff_metadata(UPDATE, RECORD, OLD)
    assert parse_body(body) == ({SESSION: "s-1", USER: "ada"}, {"mlflow.traceName": "agent", "a": "b"})
    assert body is not None
    assert (body["request_id"], body["timestamp_ms"], body["status"]) == (RECORD["trace_id"], END, "OK")


@pytest.mark.parametrize(
    ("time", "duration", "end"),
    [
        ("2026-11-22T15:31:58.349Z", "0.103s", END),
        ("2026-11-22T15:31:58Z", "0s", 1795361518000),
        ("2026-11-22T15:31:58.349000Z", "1.5s", 1795361519849),
        ("2026-11-22T15:31:58.349Z", "-1795361518.349s", 0),  # a root without an end
    ],
)
def test_diff_metadata_with_times_computes_end_in_milliseconds(time: str, duration: str, end: int) -> None:
    body = diff_metadata(UPDATE, {**RECORD, "request_time": time, "execution_duration": duration}, OLD)
    assert body is not None
    assert body["timestamp_ms"] == end


@pytest.mark.parametrize(
    "missing",
    [
        {"execution_duration": None},
        {"request_time": None},
        {"request_time": "yesterday"},
        {"execution_duration": "long"},
        {"request_time": "2026-99-22T15:31:58Z"},
    ],
)
def test_diff_metadata_with_unknown_end_returns_none(missing: Mapping[str, Any]) -> None:
    assert diff_metadata(UPDATE, {**RECORD, **missing}, OLD) is None


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
def test_diff_metadata_with_state_repeats_it(state: str | None, status: str) -> None:
    body = diff_metadata(UPDATE, {**RECORD, "state": state}, OLD)
    assert body is not None
    assert body["status"] == status


def test_diff_metadata_with_existing_values_keeps_them() -> None:
    stored = {**RECORD, "tags": {"a": "theirs"}, "trace_metadata": {SESSION: "theirs"}}
    assert parse_body(diff_metadata(UPDATE, stored, OLD)) == ({USER: "ada"}, {"mlflow.traceName": "agent"})


@pytest.mark.parametrize(("version", "name"), [((3, 12), None), ((3, 13, 0), "agent"), ((3, 14), None), (None, None)])
def test_diff_metadata_with_tags_of_another_trace_corrects_them(
    version: tuple[int, ...] | None, name: str | None
) -> None:
    stored = {**RECORD, "tags": {"mlflow.traceName": "another", "a": "b"}}
    assert parse_body(diff_metadata(UPDATE, stored, version))[1] == ({"mlflow.traceName": name} if name else {})


@pytest.mark.parametrize(
    ("stored", "is_quoted", "plain"),
    [
        ('"s-1"', True, "s-1"),
        ('"theirs"', True, "theirs"),  # the first session of a trace counts, also that of another client
        ('"with \\"quotes\\""', True, 'with "quotes"'),
        ('"s-1"', False, None),
        ("s-1", True, None),
        ('"', True, None),
        ('""', True, None),
        ('"no" json"', True, None),
    ],
)
def test_diff_metadata_with_quotes_of_older_servers_removes_them(
    stored: str, is_quoted: bool, plain: str | None
) -> None:
    record = {**RECORD, "trace_metadata": {SESSION: stored}}
    assert parse_body(diff_metadata(UPDATE, record, OLD if is_quoted else (3, 14)))[0].get(SESSION) == plain


def test_diff_metadata_without_missing_values_returns_none() -> None:
    stored = {**RECORD, "tags": dict(UPDATE.tags), "trace_metadata": dict(UPDATE.metadata)}
    assert diff_metadata(UPDATE, stored, OLD) is None


def test_diff_metadata_with_empty_record_adds_everything() -> None:
    stored = {**RECORD, "tags": None, "trace_metadata": []}
    assert parse_body(diff_metadata(UPDATE, stored, OLD)) == (dict(UPDATE.metadata), dict(UPDATE.tags))


# Prompts

PROMPTS = "mlflow.traceTag.mlflow.linkedPrompts"


@pytest.mark.parametrize(
    ("tag", "prompts"),
    [
        ('[{"name": "greeting", "version": "2"}]', (("greeting", "2"),)),
        ('[{"name": "a", "version": 1}, {"name": "b/c", "version": "10"}]', (("a", "1"), ("b/c", "10"))),
        ('[{"name": "a", "version": "1"}, {"name": "a", "version": 1}]', (("a", "1"),)),
        # MLflow's registry answers 500 to a version that is no number.
        ('[{"name": "a", "version": "latest"}, {"name": "b", "version": "0"}, {"name": "c"}]', ()),
        ('[{"name": "", "version": "1"}, {"name": 3, "version": "1"}, {"version": "1"}, "a/1", null]', ()),
        ('[{"name": "a", "version": "12345678901"}]', ()),
        ('{"name": "a", "version": "1"}', ()),
        ("no json", ()),
        ("", ()),
        (
            json.dumps([{"name": "p", "version": number} for number in range(1, 150)]),
            tuple(("p", str(n)) for n in range(1, 101)),
        ),
    ],
)
def test_read_root_with_linked_prompts_returns_valid_ones(tag: str, prompts: tuple[tuple[str, str], ...]) -> None:
    assert read_metadata({PROMPTS: tag}).prompts == prompts


@pytest.mark.parametrize(
    ("version", "can_link"), [((3, 6, 0), False), ((3, 8, 1), True), ((3, 17, 2), True), (None, True)]
)
def test_prompt_links_with_server_version_returns_body_if_supported(
    version: tuple[int, ...] | None, can_link: bool
) -> None:
    body = prompt_links(UPDATE._replace(prompts=(("greeting", "2"), ("b", "1"))), version)
    versions = [{"name": "greeting", "version": "2"}, {"name": "b", "version": "1"}]
    assert body == ({"trace_id": UPDATE.mlflow_id, "prompt_versions": versions} if can_link else None)
    assert prompt_links(UPDATE, version) is None
