"""The command line."""

import subprocess
import sys

import pytest

from mlflow_otlp_exporter import __version__, cli


def test_settings_are_shown_with_their_sources_and_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    assert cli.main(["settings"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in shown.splitlines()}
    assert rows["target"] == ["http://m/v1/traces", "environment variable MLFLOW_TRACKING_URI"]
    assert rows["token"] == ["***", "environment variable MLFLOW_TRACKING_TOKEN"]
    assert rows["timeout"] == ["10.0", "default"]
    assert "planted" not in shown


def test_wrong_setting_ends_with_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert cli.main(["settings"]) == 2
    assert "MLFLOW_TRACKING_URI is 'databricks'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: mlflow-otlp" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith(__version__)
