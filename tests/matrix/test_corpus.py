"""Recorded traces on older MLflow servers: each difference from 3.17.2 is explained, and none is worse than stock.

The console's code is that of 3.17.2, on traces that the older server returned over REST.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from support.conventions import PAGE
from support.corpus import score_in_subprocess
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.recordings import load
from support.trace_checks import COLUMNS, CheckResult

pytestmark = [pytest.mark.matrix, pytest.mark.needs("node")]


class Difference(NamedTuple):
    """A limitation of an older server, and a predicate for the failed results that it explains."""

    reason: str
    columns: tuple[str, ...]
    affects: Callable[[CheckResult], bool]


def is_missing(result: CheckResult) -> bool:
    return not result.actual


def is_quoted(result: CheckResult) -> bool:
    return bool(result.actual == json.dumps(result.expected))


def is_from_other_trace(result: CheckResult) -> bool:
    """Whether the result is the title of another trace of the same request."""
    _, traces = load(result.trace.partition("#")[0])
    return len(traces) > 1 and result.actual in set().union(*(trace.titles for trace in traces)) - set(result.expected)


def is_missing_without_request(result: CheckResult) -> bool:
    """Whether tools are missing because `input.value` holds no request with tools."""
    spans, _ = load(result.trace.partition("#")[0])
    requests = [str((span.attributes or {}).get("input.value", "")) for span in spans]
    return not result.actual and not any('"tools"' in request and '"messages"' in request for request in requests)


def is_without_answer(result: CheckResult) -> bool:
    """Whether a call of the trace has no answer, because it failed or its source does not record it."""
    return any(not chat[-1].startswith("assistant") for chat in result.expected)


def is_from_mlflow_sdk(result: CheckResult) -> bool:
    return result.trace.startswith("mlflow-sdk/")


def is_without_provider(result: CheckResult) -> bool:
    """Whether a failed call names neither its provider nor a model that tells it; no server shows it."""
    return result.trace == "voltagent/agent_model_error"


DIFFERENCES: Mapping[str, Sequence[Difference]] = {
    "3.13.0": (
        Difference("sessions and users are kept as JSON text", ("session", "user"), is_quoted),
        Difference("all traces of a request get the tags of the last", ("trace_name",), is_from_other_trace),
        Difference("no span names the provider", ("provider",), is_without_provider),
    ),
    "3.10.1": (
        Difference("sessions are kept as JSON text", ("session",), is_quoted),
        Difference("users are not read", ("user",), is_missing),
        Difference("tags of traces are not read, nor their names", ("trace_name", "tags", "metadata"), is_missing),
        Difference("a list in JSON text stays text: definitions", ("tools",), is_missing_without_request),
        Difference("a list in JSON text stays text: documents", ("documents",), is_missing),
        Difference("a list in JSON text stays text: messages without an answer", ("chats",), is_without_answer),
        Difference("spans of MLflow's SDK keep the trace id in their attribute", tuple(COLUMNS), is_from_mlflow_sdk),
        Difference("no span names the provider", ("provider",), is_without_provider),
    ),
}
# Versions and percentages of right values with this library and with stock, as docs/conventions.md has them.
SHARES = {
    version: (int(ours), int(stock))
    for version, ours, stock in re.findall(r"^\| ([\d.]+) \| (\d+) % \| (\d+) % \|$", PAGE.read_text(), re.MULTILINE)
}

Scores = Mapping[str, Sequence[CheckResult]]


@pytest.fixture(scope="module", params=DIFFERENCES)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def scores(version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scores]:
    server = MLflowServer.start(tmp_path_factory.mktemp(f"mlflow-{version}"), python=mlflow_python(version))
    try:
        yield score_in_subprocess(server.uri, ["stock", "whole"])
    finally:
        server.stop()


def test_older_server_differences_are_all_explained(version: str, scores: Scores) -> None:
    recoverable_results = [result for result in scores["whole"] if not result.unrecoverable]
    failed_results = [result for result in recoverable_results if not result.passed]
    explained = {
        difference.reason: [
            result for result in failed_results if result.column in difference.columns and difference.affects(result)
        ]
        for difference in DIFFERENCES[version]
    }
    explained_results = {(result.trace, result.column) for results in explained.values() for result in results}
    assert not [result for result in failed_results if (result.trace, result.column) not in explained_results]
    assert all(explained.values()), "a difference that explains no result"
    stock_count = sum(result.passed for result in scores["stock"] if not result.unrecoverable)
    passed_counts = (len(recoverable_results) - len(failed_results), stock_count)
    # Each recording changes the shares a little.
    assert [100 * count / len(recoverable_results) for count in passed_counts] == pytest.approx(SHARES[version], abs=1)


def test_older_server_results_are_no_worse_than_stock(scores: Scores) -> None:
    passed_keys = {(result.trace, result.column) for result in scores["whole"] if result.passed}
    assert not [
        result for result in scores["stock"] if result.passed and (result.trace, result.column) not in passed_keys
    ]
