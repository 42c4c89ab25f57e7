"""README and docs: every code block runs, the table is that of the code, every link leads somewhere."""

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
from mlflow_otlp_exporter._table import SETTINGS, settings_table
from support.environments import ROOT
from support.mlflow_server import MLflowServer

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    shutdown()
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def blocks(language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(README) if found == language]


def test_only_languages_that_are_run_and_pictures() -> None:
    assert {language for language, _ in BLOCK.findall(README)} <= {"python", "sh", "text"}


def test_python_blocks_run_in_their_order(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    provider = names["provider"]
    assert isinstance(provider, TracerProvider)
    provider.shutdown()
    assert "FlushResult(delivered=1, spooled=0, refused=0, pending=0)" in README
    assert repr(names["result"]) == "FlushResult(delivered=1, spooled=0, refused=0, pending=0)"
    assert f"{mlflow_server.uri}/#/experiments/" in capsys.readouterr().out


def test_shell_blocks_run(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from opentelemetry import trace\ntrace.get_tracer('app').start_span('x').end()\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow_server.uri}
    found = blocks("sh")
    # The two commands at the top are run by CI and by tests/test_demo.py; here it is enough that they exist.
    for code in [found[0].replace("make ", "make --dry-run "), *found[1:]]:
        folder = ROOT if "make" in code else tmp_path
        command = ["sh", "-euc", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), code


def test_the_two_commands_stand_at_the_top() -> None:
    assert re.findall(r"make \w+", blocks("sh")[0]) == ["make demo", "make test"]
    assert README.index("make demo") < 600


def test_table_of_settings_is_that_of_the_code() -> None:
    begin, end = "by tests/test_readme.py -->\n", "<!-- end of settings -->"
    table = README[README.index(begin) + len(begin) : README.index(end)]
    assert table == settings_table()
    assert all(setting.name in table for setting in SETTINGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
