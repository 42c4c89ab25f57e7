"""Documents: link targets exist, every page is linked, and each guarantee is proven by a test that CI runs."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from support.documents import DOCS, FRAMEWORK_PAGES, FRAMEWORKS, PAGES, anchors, links
from support.environments import ROOT, read_lock
from support.framework_traces import ENVIRONMENTS
from support.lanes import Lanes, collect_lanes

TESTS = ROOT / "tests"
GUARANTEES = ROOT / "docs" / "guarantees.md"
PROMISES = re.findall(r"`([\w.]+\.test_\w+)\.(test_\w+)`", GUARANTEES.read_text())
_SKIPS = re.compile(r"\b(skip|skipif|xfail|importorskip)\b")


@pytest.fixture(scope="module")
def lanes() -> Lanes:
    return collect_lanes()


def test_guarantees_name_at_least_one_test_each() -> None:
    rows = [row for row in GUARANTEES.read_text().splitlines() if row.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "|--"))]
    assert len(promises) > 30
    assert [row for row in promises if not re.search(r"`[\w.]+\.test_\w+\.test_\w+`", row)] == []


def test_guarantee_tests_are_run_by_ci(lanes: Lanes) -> None:
    assert [f"{module}.{name}" for module, name in PROMISES if (module, name) not in lanes.ci] == []


def test_collected_tests_differ_between_default_ci_and_matrix(lanes: Lanes) -> None:
    assert ("docs.test_documents", "test_collected_tests_differ_between_default_ci_and_matrix") in lanes.default
    assert lanes.ci - lanes.default
    assert lanes.matrix - lanes.ci


def parse_functions(module: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((TESTS / f"{module.replace('.', '/')}.py").read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def find_skips(module: str, name: str) -> Iterator[str]:
    """Yield the test, or its fixtures, that can skip it; the markers `needs` and `matrix` do not count."""
    all_functions = {**parse_functions("conftest"), **parse_functions(module)}
    pending_names, checked_names = [name], set[str]()
    while pending_names:
        function_name = pending_names.pop()
        if function_name in checked_names or function_name not in all_functions:
            continue
        checked_names.add(function_name)
        node = all_functions[function_name]
        if _SKIPS.search(ast.unparse(node)):
            yield function_name
        pending_names += [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]


@pytest.mark.parametrize(("module", "name"), PROMISES, ids=[name for _, name in PROMISES])
def test_guarantee_test_exists_and_never_skips(module: str, name: str) -> None:
    assert name in parse_functions(module)
    assert list(find_skips(module, name)) == []


def test_skips_in_module_with_skips_are_detected() -> None:
    names = [
        name
        for name in parse_functions("matrix.test_mlflow_versions")
        if list(find_skips("matrix.test_mlflow_versions", name))
    ]
    assert names


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_page_relative_links_have_existing_targets(page: Path) -> None:
    for path, anchor in links(page):
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {path}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {path}#{anchor}"


def test_readme_links_every_page() -> None:
    linked = {(ROOT / path).resolve() for path, _ in links(ROOT / "README.md")}
    pages = {*DOCS, FRAMEWORKS / "index.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"} - {
        ROOT / "docs" / "index.md"
    }  # the site's home
    assert sorted(page.name for page in pages - linked) == []


def test_index_of_frameworks_links_every_page_that_the_matrix_runs() -> None:
    linked = {path for path, _ in links(FRAMEWORKS / "index.md") if not path.startswith("..")}
    pages = {page.name for page in FRAMEWORK_PAGES} - {"index.md"}
    names = {name for names in ENVIRONMENTS.values() for name in names}
    assert linked == pages == {f"{name}.md" for name in (*names, "vercel-ai")}


def test_index_of_frameworks_names_the_versions_in_the_locks() -> None:
    locked = {line.partition(" ")[0] for group in ENVIRONMENTS for line in read_lock(group)}
    libraries = json.loads((TESTS / "polyglot" / "vercel-ai" / "package.json").read_text())["dependencies"]
    locked.add(f"ai@{libraries['ai']}")
    versions = set(re.findall(r"`([\w-]+(?:==|@)[\w.]+)`", (FRAMEWORKS / "index.md").read_text()))
    assert len(versions) > 10
    assert versions <= locked


def test_images_are_all_shown_in_a_page() -> None:
    shown = {(page.parent / path).resolve() for page in PAGES for path, _ in links(page)}
    assert sorted(set((ROOT / "docs" / "images").iterdir()) - shown) == []


def test_architecture_page_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "src" / "mlflow_otlp_exporter" / "_internal"
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert [name for name in sorted(folders) if f"`{name}/`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_page_environment_variables_exist(page: Path) -> None:
    text, variable = page.read_text(), re.compile(r"\bMLFLOW_OTLP_[A-Z0-9_]*[A-Z0-9]\b")
    variables = {name for setting in SETTINGS for name in setting.variables}
    if page.name in ("CHANGELOG.md", "upgrade.md"):  # they list removed settings, and older releases describe them
        changes = (ROOT / "CHANGELOG.md").read_text()
        for section in re.findall(r"^### (?:Breaking changes|Removed)\n(.*?)^##", changes, re.DOTALL | re.MULTILINE):
            variables |= set(variable.findall(section))
    assert set(variable.findall(text)) <= variables
