"""The project's documents and their fenced blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.environments import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
# One page per framework. tests/matrix/test_frameworks.py runs their code with the frameworks.
FRAMEWORKS = ROOT / "docs" / "frameworks"
FRAMEWORK_PAGES = sorted(FRAMEWORKS.glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, *FRAMEWORK_PAGES, *(ROOT / "examples").glob("**/*.md")])
_FENCE = re.compile(
    r"^(?P<note><!-- not run: .*? -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")


class Block(NamedTuple):
    """A fenced block; `is_run` is false if a note in the page says why it is not run."""

    page: Path
    line: int
    language: str
    code: str
    is_run: bool


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the fenced blocks of a page in these languages, or in any."""
    text = page.read_text()
    blocks_of_page = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        blocks_of_page.append(Block(page, line, match["language"], code, match["note"] is None))
    return [block for block in blocks_of_page if not languages or block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """Iterate over the commands of a shell block, without prompt, comment, leading variables and redirection."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and _ASSIGNMENT.match(words[0]):
            words = words[1:]
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            yield words


def exported_variables(block: Block) -> dict[str, str]:
    """Return the variables that a shell block sets with `export`."""
    pairs = (word.partition("=") for words in commands(block) if words[0] == "export" for word in words[1:])
    return {name: value for name, _, value in pairs}


def text_between(page: Path, begin: str, end: str) -> str:
    """Return the text between two marks of a page."""
    text = page.read_text()
    return text[text.index(begin) + len(begin) : text.index(end)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[str, str]]:
    """The relative links of a page: path and anchor, either of which may be empty."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in targets)]
