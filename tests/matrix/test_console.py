"""MLflow's console in a real browser: what the MLflow SDK shows of an agent, this library shows as well."""

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.parity import EXCEPTIONS, FEATURES, PICTURES, WAYS, compare_views, format_table, read_table
from support.parity import record_views as take_views

pytestmark = [pytest.mark.matrix, pytest.mark.needs("chromium")]

Seen = Mapping[str, Mapping[str, bool]]


@pytest.fixture(scope="module")
def record_views(mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return compare_views(take_views(mlflow_server, tmp_path_factory.mktemp("pictures")))


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in EXCEPTIONS])
def test_console_with_exported_trace_shows_feature(feature: str, record_views: Seen) -> None:
    assert record_views[feature]["ours"]


@pytest.mark.parametrize("feature", EXCEPTIONS)
def test_console_with_documented_exception_shows_feature_for_sdk_only(feature: str, record_views: Seen) -> None:
    """One that is shown after all must leave the list."""
    assert record_views[feature] == {"sdk": True, "stock": False, "ours": False}


def test_features_show_stock_below_sdk_below_exporter(record_views: Seen) -> None:
    """A feature that all show, or none, would prove little alone."""
    counts = {way: sum(by[way] for by in record_views.values()) for way in WAYS}
    assert counts["stock"] < counts["sdk"] < counts["ours"]


def test_parity_page_table_matches_console(record_views: Seen) -> None:
    assert _certain(read_table()) == _certain(format_table(record_views))


def _certain(text: str) -> list[str]:
    """All but one: in some runs a trace of the SDK has half of its cost, as its spans came after it was summed."""
    return [line for line in text.splitlines() if not line.startswith("| list: cost |")]


@pytest.mark.parametrize("picture", sorted(PICTURES.glob("*.png")), ids=lambda path: path.name)
def test_screenshot_is_small_and_used(picture: Path) -> None:
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) < 150_000
    width, _ = struct.unpack(">II", content[16:24])
    assert width <= 1600
    assert picture.name in (ROOT / "docs" / "parity.md").read_text() + (ROOT / "README.md").read_text()
