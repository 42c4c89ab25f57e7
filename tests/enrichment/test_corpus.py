"""Recorded traces, sent to a real MLflow server and parsed by the code of its console, give the expected cells."""

from collections.abc import Mapping, Sequence

import pytest

from support import conventions
from support.cells import Cell
from support.corpus import WAYS, scored_apart, truths
from support.mlflow_server import MLflowServer
from support.recordings import cases

pytestmark = pytest.mark.needs("node")

# Cells known to be wrong: way, trace, column. Remove a cell from here as soon as it is right.
KNOWN_WRONG: set[tuple[str, str, str]] = set()
CELLS, APART, STOCK = 1275, 36, 702

Scored = Mapping[str, Sequence[Cell]]


@pytest.fixture(name="scored", scope="module")
def score_recordings(mlflow_server: MLflowServer) -> Scored:
    return scored_apart(mlflow_server.uri, list(WAYS))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "stock"])
def test_console_of_recorded_traces_displays_expected_cells(way: str, scored: Scored) -> None:
    counted = [cell for cell in scored[way] if not cell.apart]
    wrong = {(way, cell.trace, cell.column): (cell.expected, cell.found) for cell in counted if not cell.right}
    known_wrong = {key for key in KNOWN_WRONG if key[0] == way}
    assert not {key: values for key, values in wrong.items() if key not in known_wrong}
    assert known_wrong <= wrong.keys(), "these are right now"
    assert (len(counted), len(scored[way]) - len(counted)) == (CELLS, APART)


def test_scorer_of_stock_exporter_counts_right_cells(scored: Scored) -> None:
    assert sum(cell.right for cell in scored["stock"] if not cell.apart) == STOCK


def test_console_of_whole_traces_keeps_right_cells_of_stock_exporter(scored: Scored) -> None:
    """Also where nothing is expected: what is right with upstream's exporter stays right."""
    right = {(cell.trace, cell.column) for cell in scored["stock"] if cell.right}
    assert right <= {(cell.trace, cell.column) for cell in scored["whole"] if cell.right}


def test_conventions_page_has_current_scores(scored: Scored) -> None:
    assert conventions.written() == conventions.tables(scored["stock"], scored["whole"], truths()), "make conventions"


def test_truths_belong_to_recordings() -> None:
    recorded = cases()
    assert {key.partition("#")[0] for key in truths()} <= recorded.keys()
    assert len(recorded) == 103
