"""The same programs by `mlflow.<flavor>.autolog()` and by this library: nothing is worse without a reason."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import pytest

from support.autolog import (
    PROGRAMS,
    REASONS,
    TRUTHS,
    ProgramResult,
    compare_programs,
    format_tables,
    list_sdk_only_fields,
    read_tables,
)
from support.mlflow_server import MLflowServer

pytestmark = [pytest.mark.matrix, pytest.mark.needs("node")]

Compared = Mapping[str, Mapping[str, ProgramResult]]


@pytest.fixture(scope="module")
def comparison(mlflow_server: MLflowServer) -> Compared:
    return compare_programs(mlflow_server)


def test_programs_have_ground_truth() -> None:
    assert PROGRAMS.keys() == TRUTHS.keys()


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_with_exporter_passes_all_checks(program: str, comparison: Compared) -> None:
    assert not [result for result in comparison[program]["ours"].results if not result.passed]
    assert len(comparison[program]["ours"].results) == len(comparison[program]["sdk"].results)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_with_sdk_fails_a_check(program: str, comparison: Compared) -> None:
    """Which shows that it can."""
    assert [result for result in comparison[program]["sdk"].results if not result.passed]


def test_fields_filled_by_sdk_only_have_reasons(comparison: Compared) -> None:
    fields = list_sdk_only_fields(comparison)
    assert not [field for field in fields if not any(fnmatchcase(field, pattern) for pattern in REASONS)]
    assert not [pattern for pattern in REASONS if not any(fnmatchcase(field, pattern) for field in fields)]


def test_parity_page_tables_match_comparison(comparison: Compared) -> None:
    assert _certain(read_tables()) == _certain(format_tables(comparison))


def _certain(text: str) -> list[str]:
    """All but two: in some runs a trace of the SDK has half of its cost, as its spans came after it was summed."""
    return [line for line in text.splitlines() if not line.startswith(("| cost |", "| all |"))]
