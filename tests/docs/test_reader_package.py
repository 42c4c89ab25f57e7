"""examples/reader-package, installed as a real distribution, adds its reader to every application."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.environments import ROOT

PACKAGE = ROOT / "examples" / "reader-package"


@pytest.fixture(name="site", scope="module")
def install_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--no-index", "--target", str(site), str(PACKAGE)], check=True, timeout=120
    )
    return site


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, timeout=120, check=False)


def test_tests_of_the_package_pass(site: Path) -> None:
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(PACKAGE / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_reader_is_imported_at_the_first_span_only(site: Path) -> None:
    code = """
import sys
import acme_tracing
from mlflow_otlp_exporter.testing import recording
with recording() as recorded:
    assert "acme_tracing.mlflow" not in sys.modules
    acme_tracing.ask("Rain?")
    (span,) = recorded.spans
    assert "acme_tracing.mlflow" in sys.modules
print(span.attributes["mlflow.spanType"], span.attributes["metadata"])
"""
    done = run(site, "-c", code)
    assert (done.returncode, done.stdout) == (0, 'CHAT_MODEL {"sources": ["rain.txt", "sun.txt"]}\n'), done.stderr


def test_page_shows_the_entry_point_of_the_package() -> None:
    page = (ROOT / "docs" / "adding-a-convention.md").read_text()
    (group,) = re.findall(r'^\[project\.entry-points\."(.*)"\]$', page, re.MULTILINE)
    assert f'[project.entry-points."{group}"]' in (PACKAGE / "pyproject.toml").read_text()
