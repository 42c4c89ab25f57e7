"""README: every code block runs, the page is short, and the messages that it explains exist."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import shutdown
from support.documents import anchors, blocks
from support.environments import ROOT
from support.mlflow_server import MLflowServer

PAGE, GUIDE = ROOT / "README.md", ROOT / "docs" / "troubleshooting.md"
README = PAGE.read_text()
_MESSAGE = re.compile(
    r"^\| `(?P<message>[^`]+)` \|.*\| \[(?P<code>MLO-\d+)\]\(docs/troubleshooting\.md#(?P<anchor>.*)\) \|$"
)


@pytest.fixture(autouse=True)
def shut_down_telemetry() -> Iterator[None]:
    yield
    shutdown()
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def read_code_blocks(language: str) -> list[str]:
    return [block.code for block in blocks(PAGE, language)]


def test_readme_blocks_have_tested_languages() -> None:
    assert {block.language for block in blocks(PAGE)} == {"python", "sh"}


def test_readme_length_is_at_most_125_lines() -> None:
    assert len(README.splitlines()) <= 125


def test_readme_python_blocks_in_order_deliver_span(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    names: dict[str, object] = {}
    for block in read_code_blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert "FlushResult(delivered=1, spooled=0, dropped=0, pending=0)" in README
    assert repr(names["result"]) == "FlushResult(delivered=1, spooled=0, dropped=0, pending=0)"
    assert f"{mlflow_server.uri}/#/experiments/" in capsys.readouterr().out


def test_readme_shell_blocks_exit_with_zero(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from opentelemetry import trace\ntrace.get_tracer('app').start_span('x').end()\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow_server.uri}
    scripts = read_code_blocks("sh")
    # CI and tests/docs/test_demo.py run the two commands at the top, so this test checks only that make knows them.
    for script in [scripts[0].replace("make ", "make --dry-run "), *scripts[1:]]:
        folder = ROOT if "make" in script else tmp_path
        command = ["sh", "-euc", script]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("mlflow-otlp: ")]
        assert (done.returncode, lines) == (0, []), command


def test_readme_make_commands_are_at_the_top() -> None:
    assert re.findall(r"make \w+", read_code_blocks("sh")[0]) == ["make demo", "make test"]
    assert README[: README.index("make demo")].count("\n") < 12


def test_readme_messages_match_troubleshooting_guide() -> None:
    matches = [match for line in README.splitlines() if (match := _MESSAGE.match(line))]
    assert len(matches) > 5
    for match in matches:
        section = GUIDE.read_text().partition(f"### {match['code']}: ")[2].partition("\n### ")[0]
        assert f"`{match['message']}`" in section, match["code"]
        assert match["anchor"].startswith(match["code"].lower())
        assert match["anchor"] in anchors(GUIDE)
