"""Settings as text, and unknown variables."""

import logging

import pytest

from mlflow_otlp_exporter import configure
from mlflow_otlp_exporter._internal.config.describe import describe_unknown_variables, unknown_variables
from mlflow_otlp_exporter._internal.config.schema import SETTINGS


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MLFLOW_OTLP_SPOL_DIR", "/tmp", [("MLFLOW_OTLP_SPOL_DIR", "MLFLOW_OTLP_SPOOL_DIR")]),
        ("MLFLOW_OTLP_XYZZY_QUUX_42", "1", [("MLFLOW_OTLP_XYZZY_QUUX_42", None)]),
        ("MLFLOW_OTLP_SPOL_DIR", " ", []),
        ("MLFLOW_TRACKING_URL", "http://m", []),  # MLflow's are not ours to know
    ],
)
def test_unknown_variables_returns_most_similar_setting(
    name: str, value: str, expected: list[tuple[str, str | None]]
) -> None:
    assert list(unknown_variables({name: value})) == expected


def test_unknown_variables_knows_every_setting() -> None:
    assert not list(unknown_variables({name: "x" for setting in SETTINGS for name in setting.variables}))


def test_describe_unknown_variables_suggests_setting_without_value() -> None:
    (message,) = describe_unknown_variables({"MLFLOW_OTLP_SPOL_DIR": "planted"})
    assert message == (
        "Unknown environment variable MLFLOW_OTLP_SPOL_DIR is ignored. Did you mean MLFLOW_OTLP_SPOOL_DIR?"
    )


def test_configure_unknown_variable_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_NOIZE", "none")
    configure(tracking_uri="http://127.0.0.1:9", auto_instrument=False).shutdown(0.1)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["Did you mean MLFLOW_OTLP_NOISE?" in record.getMessage() for record in warnings] == [True]
