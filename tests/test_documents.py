"""The documents: what they name exists, and what they link to is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "examples").glob("**/*.md")])
PROMISES = re.findall(r"`(test_\w+)\.(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text())


def functions(module: str) -> dict[str, list[str]]:
    """The test functions of a module, with the names of what decorates them."""
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    return {
        node.name: [ast.unparse(each) for each in node.decorator_list]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def test_each_promise_names_its_tests() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith(("| promise", "|--"))]
    assert len(rows) > 30
    assert [row for row in rows if not re.search(r"`test_\w+\.test_\w+`", row)] == []


@pytest.mark.parametrize(("module", "name"), PROMISES, ids=[name for _, name in PROMISES])
def test_what_a_promise_names_is_a_test_that_runs(module: str, name: str) -> None:
    found = functions(module)
    assert name in found
    assert [each for each in found[name] if "skip" in each or "xfail" in each] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are shown on the web."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}"
