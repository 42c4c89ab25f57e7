"""MLflow's console in a real browser shows the same of an agent with this library as with the MLflow SDK."""

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.parity import EXCEPTIONS, FEATURES, PICTURES, WAYS, compare_views, format_table, read_table, record_views

pytestmark = [pytest.mark.matrix, pytest.mark.needs("chromium")]

FeatureViews = Mapping[str, Mapping[str, bool]]


@pytest.fixture(scope="module")
def views(mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory) -> FeatureViews:
    return compare_views(record_views(mlflow_server, tmp_path_factory.mktemp("pictures")))


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in EXCEPTIONS])
def test_console_with_exported_trace_shows_feature(feature: str, views: FeatureViews) -> None:
    assert views[feature]["ours"]


@pytest.mark.parametrize("feature", EXCEPTIONS)
def test_console_with_documented_exception_shows_feature_for_sdk_only(feature: str, views: FeatureViews) -> None:
    """An exception that the console shows after all must be removed from the list."""
    assert views[feature] == {"sdk": True, "stock": False, "ours": False}


def test_features_show_stock_below_sdk_below_exporter(views: FeatureViews) -> None:
    """A feature that all three show, or none, proves little."""
    counts = {way: sum(feature_views[way] for feature_views in views.values()) for way in WAYS}
    assert counts["stock"] < counts["sdk"] < counts["ours"]


def test_parity_page_table_matches_console(views: FeatureViews) -> None:
    assert select_stable_lines(read_table()) == select_stable_lines(format_table(views))


def select_stable_lines(text: str) -> list[str]:
    """Omit the row of costs: the SDK's cost is halved in runs where spans arrive after the server has summed it."""
    return [line for line in text.splitlines() if not line.startswith("| list: cost |")]


@pytest.mark.parametrize("picture", sorted(PICTURES.glob("*.png")), ids=lambda path: path.name)
def test_screenshot_is_small_and_used(picture: Path) -> None:
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) < 150_000
    width, _ = struct.unpack(">II", content[16:24])
    assert width <= 1600
    assert picture.name in (ROOT / "docs" / "parity.md").read_text() + (ROOT / "README.md").read_text()
