"""Recorded traces against a real MLflow server and the code of its console: everything that can be right is right."""

from collections.abc import Mapping, Sequence

import pytest

from support import conventions
from support.cells import Cell
from support.corpus import WAYS, scored_apart, truths
from support.mlflow_server import MLflowServer
from support.recordings import cases

pytestmark = pytest.mark.needs("node")

# What is wrong and is known to be: way, trace, column. A cell that is right now must not stand here.
KNOWN: set[tuple[str, str, str]] = set()
CELLS, APART, STOCK = 1275, 36, 702

Scored = Mapping[str, Sequence[Cell]]


@pytest.fixture(scope="module")
def scored(mlflow_server: MLflowServer) -> Scored:
    return scored_apart(mlflow_server.uri, list(WAYS))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "stock"])
def test_all_that_can_be_right_is_right(way: str, scored: Scored) -> None:
    counted = [cell for cell in scored[way] if not cell.apart]
    wrong = {(way, cell.trace, cell.column): (cell.expected, cell.found) for cell in counted if not cell.right}
    known = {each for each in KNOWN if each[0] == way}
    assert not {where: what for where, what in wrong.items() if where not in known}
    assert known <= wrong.keys(), "these are right now"
    assert (len(counted), len(scored[way]) - len(counted)) == (CELLS, APART)


def test_the_scorer_tells_right_from_wrong(scored: Scored) -> None:
    assert sum(cell.right for cell in scored["stock"] if not cell.apart) == STOCK


def test_whole_agrees_with_stock_where_that_is_right(scored: Scored) -> None:
    """Also where nothing could be expected: what upstream's exporter happens to get right is not lost."""
    right = {(cell.trace, cell.column) for cell in scored["stock"] if cell.right}
    assert right <= {(cell.trace, cell.column) for cell in scored["whole"] if cell.right}


def test_table_of_the_page_is_the_score(scored: Scored) -> None:
    assert conventions.written() == conventions.tables(scored["stock"], scored["whole"], truths()), "make conventions"


def test_every_truth_is_of_a_recording() -> None:
    recorded = cases()
    assert {key.partition("#")[0] for key in truths()} <= recorded.keys()
    assert len(recorded) == 103
