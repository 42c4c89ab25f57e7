"""Recorded traces, sent to a real MLflow server and parsed by the code of its console, give the expected results."""

import json
from collections.abc import Mapping, Sequence

import pytest

from support import conventions
from support.corpus import WAYS, score_in_subprocess, truths
from support.mlflow_server import MLflowServer
from support.recordings import cases
from support.trace_checks import COLUMNS, CheckResult
from support.truth import FILE, format_truth

pytestmark = pytest.mark.needs("node")

# Checks known to be wrong: way, trace, column. Remove a result from here as soon as it is right.
KNOWN_WRONG: set[tuple[str, str, str]] = {
    # The failed call names neither its provider nor a model that tells it.
    *((way, "voltagent/agent_model_error", "provider") for way in WAYS if way != "stock"),
    # A span that is exported before the spans above it takes nothing from them.
    *(("in pieces", "codex/shell#1", column) for column in ("model", "provider")),
    *(("in pieces", f"mastra-otel/{case}", "tools") for case in ("agent_chat_api_tools", "agent_parallel_tools")),
    ("in pieces", "mastra-otel/agent_tool_error", "chats"),
    *(("in pieces", "voltagent/agent_parallel_tools", column) for column in ("cache", "usage")),
}

Scored = Mapping[str, Sequence[CheckResult]]


@pytest.fixture(name="scored", scope="module")
def score_recordings(mlflow_server: MLflowServer) -> Scored:
    return score_in_subprocess(mlflow_server.uri, list(WAYS))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "stock"])
def test_console_of_recorded_traces_displays_expected_cells(way: str, scored: Scored) -> None:
    counted = [result for result in scored[way] if not result.unrecoverable]
    wrong = {
        (way, result.trace, result.column): (result.expected, result.actual) for result in counted if not result.passed
    }
    known_wrong = {key for key in KNOWN_WRONG if key[0] == way}
    assert not {key: values for key, values in wrong.items() if key not in known_wrong}
    assert known_wrong <= wrong.keys(), "these are right now"
    checked = {(result.trace, result.column) for result in scored[way]}
    assert len(checked) == len(scored[way])
    assert checked == {(result.trace, result.column) for result in scored["whole"]}


def test_every_expected_value_is_checked(scored: Scored) -> None:
    expected = {(key, column) for key, truth in truths().items() for column in truth if column in COLUMNS}
    checked = {(result.trace, result.column) for result in scored["whole"]}
    assert len(expected) > 1000
    assert {key: column for key, column in expected - checked if "duplicate_of" not in truths()[key]} == {}


def test_console_of_whole_traces_keeps_right_cells_of_stock_exporter(scored: Scored) -> None:
    """Also where nothing is expected: what is right with upstream's exporter stays right."""
    right = {(result.trace, result.column) for result in scored["stock"] if result.passed}
    assert right <= {(result.trace, result.column) for result in scored["whole"] if result.passed}


def test_conventions_page_has_current_scores(scored: Scored) -> None:
    assert conventions.read_tables() == conventions.format_tables(scored["stock"], scored["whole"], truths()), (
        "make conventions"
    )


def test_truths_belong_to_recordings() -> None:
    recorded = cases()
    assert {key.partition("#")[0] for key in truths()} <= recorded.keys()
    assert {key.partition("/")[0] for key in truths()} == {key.partition("/")[0] for key in recorded}


def test_truth_is_formatted() -> None:
    text = FILE.read_text()
    assert text == format_truth(json.loads(text)), "make format"
