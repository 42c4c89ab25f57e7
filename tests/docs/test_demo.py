"""`make demo`, and the example behind it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from support.environments import ROOT


def test_demo_with_real_server_prints_stored_trace(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--data", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for expected in (
        "AGENT",
        "CHAT_MODEL",
        "TOOL",
        "RETRIEVER",
        "find_trains",
        "tokens",
        "state     OK",
        "#/experiments/",
    ):
        assert expected in result.stdout


def test_quickstart_without_api_key_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    quickstart = importlib.import_module("quickstart")
    assert "TGV 6608" in quickstart.answer(quickstart.QUESTION)
    assert "Marseille" in str(quickstart.find_trains.invoke({"origin": "Lyon", "destination": "Marseille"}))


def test_quickstart_library_lines_match_readme() -> None:
    example = (ROOT / "examples" / "quickstart.py").read_text()
    for line in ("from mlflow_otlp_exporter import configure", "telemetry = configure(experiment="):
        assert line in example
        assert line in (ROOT / "README.md").read_text()
