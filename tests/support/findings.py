"""Files and output that check_names and check_words have in common."""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.environments import ROOT

# A data file, because the lists would be findings themselves in Python source.
BANNED: dict[str, Any] = json.loads((Path(__file__).parent / "banned_words.json").read_text())


@dataclass(frozen=True, order=True)
class Finding:
    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.message}"


def iter_files(paths: Iterable[Path], suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the files themselves, and those below the folders that have one of the suffixes, sorted."""
    for path in paths:
        if path.is_dir():
            yield from sorted(
                file for file in path.rglob("*") if file.suffix in suffixes and "__pycache__" not in file.parts
            )
        else:
            yield path


def run_check(
    check_file: Callable[[Path], Iterable[Finding]],
    arguments: Sequence[str],
    default_paths: Sequence[str],
    suffixes: Collection[str],
) -> int:
    """Print the findings in the given or the default paths; return the exit status."""
    paths = [Path(argument).resolve() for argument in arguments] or [ROOT / path for path in default_paths]
    findings = sorted(finding for file in iter_files(paths, suffixes) for finding in check_file(file))
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"{len(findings)} findings\n")
    return 1 if findings else 0
