"""Recorded traces on older MLflow servers: what is different from 3.17.2 is known, and nothing is worse than stock.

The console's code is that of 3.17.2, on traces that the older server gave back over REST.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from support.corpus import score_in_subprocess, truths
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.recordings import load
from support.trace_checks import CheckResult

pytestmark = [pytest.mark.matrix, pytest.mark.needs("node")]


class Difference(NamedTuple):
    """What an older server does not do.

    Attributes:
        reason: In words.
        columns: Which results it spoils.
        spoils: Whether it spoils this one, and in this way.
    """

    reason: str
    columns: tuple[str, ...]
    spoils: Callable[[CheckResult], bool]


def missing(result: CheckResult) -> bool:
    return not result.actual


def is_quoted(result: CheckResult) -> bool:
    return bool(result.actual == json.dumps(result.expected))


def of_a_neighbour(result: CheckResult) -> bool:
    """Whether a trace is called like another one of the same request."""
    _, traces = load(result.trace.partition("#")[0])
    return len(traces) > 1 and result.actual in set().union(*(trace.titles for trace in traces)) - set(result.expected)


def without_its_request(result: CheckResult) -> bool:
    """Whether tools are missing that the source did not put into a request in `input.value`."""
    spans, _ = load(result.trace.partition("#")[0])
    requests = [str((span.attributes or {}).get("input.value", "")) for span in spans]
    return not result.actual and not any('"tools"' in request and '"messages"' in request for request in requests)


def of_a_failed_call(result: CheckResult) -> bool:
    return "error_span" in truths()[result.trace]


OLDER: Mapping[str, Sequence[Difference]] = {
    "3.13.0": (
        Difference("sessions and users are kept as JSON text", ("session", "user"), is_quoted),
        Difference("all traces of a request get the tags of the last", ("trace_name",), of_a_neighbour),
    ),
    "3.10.1": (
        Difference("sessions are kept as JSON text", ("session",), is_quoted),
        Difference("users are not read", ("user",), missing),
        Difference("tags of traces are not read, nor their names", ("trace_name", "tags", "metadata"), missing),
        Difference("a list in JSON text stays text: definitions", ("tools",), without_its_request),
        Difference("a list in JSON text stays text: documents", ("documents",), missing),
        Difference("a list in JSON text stays text: messages of failed calls", ("chats",), of_a_failed_call),
    ),
}
# Of 1275, as docs/conventions.md says: stock, and ours.
CHECKS, RIGHT = 1275, {"3.13.0": (649, 1228), "3.10.1": (591, 1071)}

Scored = Mapping[str, Sequence[CheckResult]]


@pytest.fixture(scope="module", params=OLDER)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def scores(version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scored]:
    server = MLflowServer.start(tmp_path_factory.mktemp(f"mlflow-{version}"), python=mlflow_python(version))
    try:
        yield score_in_subprocess(server.uri, ["stock", "whole"])
    finally:
        server.stop()


def test_older_server_differences_are_all_explained(version: str, scores: Scored) -> None:
    counted = [result for result in scores["whole"] if not result.unrecoverable]
    wrong = [result for result in counted if not result.passed]
    explained = {
        difference.reason: [
            result for result in wrong if result.column in difference.columns and difference.spoils(result)
        ]
        for difference in OLDER[version]
    }
    explained_results = {(result.trace, result.column) for results in explained.values() for result in results}
    assert not [result for result in wrong if (result.trace, result.column) not in explained_results]
    assert all(explained.values()), "a difference that spoils nothing"
    stock = sum(result.passed for result in scores["stock"] if not result.unrecoverable)
    assert (len(counted), (stock, len(counted) - len(wrong))) == (CHECKS, RIGHT[version])


def test_older_server_results_are_no_worse_than_stock(scores: Scored) -> None:
    right = {(result.trace, result.column) for result in scores["whole"] if result.passed}
    assert not [result for result in scores["stock"] if result.passed and (result.trace, result.column) not in right]
