"""docs/command-line.md is what the commands print."""

from pathlib import Path

import pytest

from support import terminal_page
from support.mlflow_server import MLflowServer


def test_page_has_the_help_of_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = terminal_page.PAGE.read_text()
    for block in terminal_page.help_blocks():
        assert block in page, "run `make command-line`"


@pytest.mark.matrix
def test_recorded_sessions_are_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("server", "home"):
        (tmp_path / name).mkdir()
    server = MLflowServer.start(tmp_path / "server")
    try:
        assert terminal_page.build_page(server, tmp_path / "home") == terminal_page.PAGE.read_text()
    finally:
        server.stop()
