"""The project's documents: which there are, and what stands in their fenced blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.environments import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, *(ROOT / "examples").glob("**/*.md")])
_FENCE = re.compile(
    r"^(?P<note><!-- not run: .*? -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: Where it stands.
        line: Its first line there.
        language: What it is.
        code: Its text.
        is_run: False if the page says before it that, and why, it is not run.
    """

    page: Path
    line: int
    language: str
    code: str
    is_run: bool


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in their order; of all languages if none is named."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(page, line, match["language"], code, match["note"] is None))
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell's block, without prompt, comment, variables before it and redirection."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and _ASSIGNMENT.match(words[0]):
            words = words[1:]
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            yield words


def exported_variables(block: Block) -> dict[str, str]:
    """The variables that a shell's block sets with `export`."""
    pairs = (word.partition("=") for words in commands(block) if words[0] == "export" for word in words[1:])
    return {name: value for name, _, value in pairs}


def text_between(page: Path, begin: str, end: str) -> str:
    """What stands between two marks of a page."""
    text = page.read_text()
    return text[text.index(begin) + len(begin) : text.index(end)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are shown on the web."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[str, str]]:
    """The relative links of a page: path and anchor, either of which may be empty."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in targets)]
