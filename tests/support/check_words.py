"""Check that no text uses words that CONTRIBUTING.md rules out.

PYTHONPATH=tests python -m support.check_words [PATH...]

Whole files are searched, without parsing: comments, docstrings, messages, documentation and the words in identifiers
(test names are sentences, too). A phrase may go on in the next line of a comment, string or paragraph.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from support.environments import ROOT
from support.findings import BANNED, Finding, run_check

DEFAULT_PATHS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    ".ci/run",
    "docs",
    "src",
    "tests",
    "examples",
    "benchmarks",
)
SUFFIXES = {".js", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
PHRASES: tuple[str, ...] = tuple(BANNED["phrases"])
# Recorded traces of other programs.
CORPUS = ROOT / "tests" / "corpus"

# Between two words: white space, an underscore, comment and quotation marks, the ends of adjacent string literals.
_GAP = r"""(?:[\s_#>*]|\\n|["']\s+(?:\#.*\s+)?[A-Za-z]{0,2}["'])+"""
# No letter before the first word, except that of an escape sequence.
_PATTERN = re.compile(
    r"(?:(?<![^\W\d_])|(?<=\\[nrt]))(?:"
    + "|".join(f"({_GAP.join(phrase.split())})" for phrase in PHRASES)
    + r")(?![^\W\d_])",
    re.IGNORECASE,
)


def check_text(text: str, path: Path) -> Iterator[Finding]:
    for match in _PATTERN.finditer(text):
        phrase = PHRASES[(match.lastindex or 1) - 1]
        yield Finding(path, text.count("\n", 0, match.start()) + 1, f"{phrase!r}: use plain words")


def check_file(path: Path) -> Iterator[Finding]:
    if not path.is_relative_to(CORPUS):
        yield from check_text(path.read_text(encoding="utf-8"), path)


if __name__ == "__main__":
    sys.exit(run_check(check_file, sys.argv[1:], DEFAULT_PATHS, SUFFIXES))
