"""The same programs traced by `mlflow.<flavor>.autolog()` and by this library: each loss has a documented reason."""

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

Comparison = Mapping[str, Mapping[str, ProgramResult]]


@pytest.fixture(scope="module")
def comparison(mlflow_server: MLflowServer) -> Comparison:
    return compare_programs(mlflow_server)


def test_programs_have_ground_truth() -> None:
    assert PROGRAMS.keys() == TRUTHS.keys()


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_with_exporter_passes_all_checks(program: str, comparison: Comparison) -> None:
    assert not [result for result in comparison[program]["ours"].results if not result.passed]
    assert len(comparison[program]["ours"].results) == len(comparison[program]["sdk"].results)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_with_sdk_fails_a_check(program: str, comparison: Comparison) -> None:
    """Proves that the checks can fail."""
    assert [result for result in comparison[program]["sdk"].results if not result.passed]


def test_fields_filled_by_sdk_only_have_reasons(comparison: Comparison) -> None:
    fields = list_sdk_only_fields(comparison)
    assert not [field for field in fields if not any(fnmatchcase(field, pattern) for pattern in REASONS)]
    assert not [pattern for pattern in REASONS if not any(fnmatchcase(field, pattern) for field in fields)]


def test_parity_page_tables_match_comparison(comparison: Comparison) -> None:
    assert select_stable_lines(read_tables()) == select_stable_lines(format_tables(comparison))


def select_stable_lines(text: str) -> list[str]:
    """Omit two rows: the SDK's cost is halved in runs where spans arrive after the server has summed it."""
    return [line for line in text.splitlines() if not line.startswith(("| cost |", "| all |"))]
