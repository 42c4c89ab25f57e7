"""Documentation site: it builds without a warning, and every page works in a browser without a network."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

import mlflow_otlp_exporter
from mlflow_otlp_exporter import testing
from mlflow_otlp_exporter._internal.cli.main import COLLECTOR_CONFIGS, read_collector_config
from support.documents import DOCS, PAGES, links
from support.environments import ROOT


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def findings(site: Path) -> dict[str, Any]:
    """What a browser finds on the pages: support/site_browser.py lists the keys."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(site)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        command = [sys.executable, "-m", "support.site_browser", str(site), f"http://127.0.0.1:{server.server_port}"]
        done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=300, check=False)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.needs("chromium")
def test_pages_in_browser_have_no_errors(findings: dict[str, Any]) -> None:
    assert len(findings["pages"]) > len(DOCS)
    assert findings["errors"] == []


@pytest.mark.needs("chromium")
def test_pages_in_browser_request_nothing_from_other_hosts(findings: dict[str, Any]) -> None:
    assert findings["foreign_requests"] == []


@pytest.mark.needs("chromium")
def test_pages_describe_all_pictures_and_fit_a_phone(findings: dict[str, Any]) -> None:
    assert findings["pictures_without_text"] == []
    assert findings["wide_pages"] == []


@pytest.mark.needs("chromium")
def test_search_for_message_code_shows_its_section_first(findings: dict[str, Any]) -> None:
    # The first result is the page; its sections follow.
    sections = [address for address in findings["search_results"]["MLO-301"] if "#" in address]
    assert sections[0].partition("/troubleshooting/")[2].endswith("#mlo-301-authentication-failed")


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("configure", "/api/"),
        ("workspace", "/"),
        ("MLFLOW_TRACKING_TOKEN_FILE", "/configuration/"),
        ("gateway", "/gateway/"),
    ],
)
def test_search_for_term_lists_its_page(findings: dict[str, Any], query: str, page: str) -> None:
    assert any(page in address for address in findings["search_results"][query])


@pytest.mark.needs("chromium")
def test_switch_of_palette_changes_background(findings: dict[str, Any]) -> None:
    light, dark = findings["backgrounds"]
    assert light != dark


def test_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "api" / "index.html").read_text()
    names = [f"mlflow_otlp_exporter.{name}" for name in mlflow_otlp_exporter.__all__ if name != "__version__"]
    names += [f"mlflow_otlp_exporter.testing.{name}" for name in testing.__all__]
    assert [name for name in names if f'id="{name}"' not in page] == []


def test_site_has_every_file_of_the_examples(site: Path) -> None:
    """A reader who has only the installed package can get them."""
    files = [path for path in (ROOT / "examples").rglob("*") if path.suffix in (".yaml", ".json", ".py", ".toml")]
    assert len(files) > 10
    copies = {path: site / path.relative_to(ROOT) for path in files}
    assert [path.name for path, copy in copies.items() if copy.read_bytes() != path.read_bytes()] == []
    for name in COLLECTOR_CONFIGS:
        assert (site / "collector_configs" / f"{name}.yaml").read_text() == read_collector_config(name)


def test_site_shows_the_files_that_pages_name_in_comments(site: Path) -> None:
    shown = [
        (page, path) for page in PAGES for path in re.findall(r"^<!-- show: (.*) -->$", page.read_text(), re.MULTILINE)
    ]
    assert len(shown) > 5
    for page, path in shown:
        folder = page.parent.relative_to(ROOT / "docs" if page in DOCS else ROOT)
        html = (site / folder / ("" if page.stem == "README" else page.stem) / "index.html").read_text()
        text = unescape(re.sub(r"<[^>]+>", "", html))
        lines = [line for line in (page.parent / path).read_text().splitlines() if line]
        assert [line for line in lines if line not in text] == [], page
        # GitHub does not show the file, so the page needs a link to it.
        assert (path, "") in links(page)


def test_navigation_has_every_page() -> None:
    # A full loader would import the modules of the tags that a configuration of MkDocs may have.
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    text = json.dumps(navigation)
    assert [page.name for page in DOCS if f'"{page.name}"' not in text] == []


def test_addresses_are_only_in_project_metadata() -> None:
    host = "mlflow-otlp-exporter.readthedocs.io"
    texts = {
        path: path.read_text() for path in (*DOCS, ROOT / "mkdocs.yml", ROOT / "README.md", ROOT / ".readthedocs.yaml")
    }
    assert [path.name for path, text in texts.items() if host in text] == []
