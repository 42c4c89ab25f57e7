"""Variables that are named like a setting and are none."""

import logging

import pytest

from mlflow_otlp_exporter import configure
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from mlflow_otlp_exporter._internal.config.unknown_variables import describe_unknown_variables, unknown_variables


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MLFLOW_OTLP_SPOL_DIR", "/tmp", [("MLFLOW_OTLP_SPOL_DIR", "MLFLOW_OTLP_SPOOL_DIR")]),
        ("MLFLOW_OTLP_XYZZY_QUUX_42", "1", [("MLFLOW_OTLP_XYZZY_QUUX_42", None)]),
        ("MLFLOW_OTLP_SPOL_DIR", " ", []),
        ("MLFLOW_TRACKING_URL", "http://m", []),  # MLflow's are not ours to know
    ],
)
def test_unknown(name: str, value: str, expected: list[tuple[str, str | None]]) -> None:
    assert list(unknown_variables({name: value})) == expected


def test_all_settings_are_known() -> None:
    assert not list(unknown_variables({name: "x" for setting in SETTINGS for name in setting.variables}))


def test_words() -> None:
    (said,) = describe_unknown_variables({"MLFLOW_OTLP_SPOL_DIR": "planted"})
    assert said == (
        "environment variable MLFLOW_OTLP_SPOL_DIR is none of this library's, and has no effect: is "
        "MLFLOW_OTLP_SPOOL_DIR meant?"
    )


def test_configure_tells(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_NOIZE", "none")
    configure(tracking_uri="http://127.0.0.1:9", auto_instrument=False).shutdown(0.1)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["MLFLOW_OTLP_NOISE meant?" in record.getMessage() for record in told] == [True]
