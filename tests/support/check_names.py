"""Check that identifiers follow the naming rules of CONTRIBUTING.md.

PYTHONPATH=tests python -m support.check_names [PATH...]

Filler words are no names of variables, parameters, attributes, functions, classes, modules or folders; past participles
are no names of functions. Only definitions are findings, so that other libraries' names can be used.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from support.environments import ROOT
from support.findings import BANNED, Finding, run_check

DEFAULT_PATHS = ("src", "tests", "examples", "benchmarks")
IDENTIFIERS = frozenset(BANNED["identifiers"])
PARTICIPLES = frozenset(BANNED["irregular_participles"])
NOT_PARTICIPLES = frozenset(BANNED["not_participles"])
# Function names that look like participles, and the reason why each is right.
STANDARD_NAMES = {
    "traced": "public decorator, named as in other tracing libraries",
}

NAME_FIELDS: dict[type[ast.AST], tuple[str, str]] = {
    ast.arg: ("arg", "parameter"),
    ast.keyword: ("arg", "keyword argument"),
    ast.FunctionDef: ("name", "function"),
    ast.AsyncFunctionDef: ("name", "function"),
    ast.ClassDef: ("name", "class"),
    ast.ExceptHandler: ("name", "variable"),
    ast.alias: ("asname", "variable"),
    ast.MatchAs: ("name", "variable"),
    ast.MatchStar: ("name", "variable"),
    ast.MatchMapping: ("rest", "variable"),
}


def is_banned(name: str) -> bool:
    return name.strip("_").lower() in IDENTIFIERS


def is_bare_participle(name: str) -> bool:
    word = name.strip("_").lower()
    if "_" in word or word in NOT_PARTICIPLES or word in STANDARD_NAMES:
        return False
    return word.endswith("ed") or word in PARTICIPLES


def iter_definitions(node: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Yield name, line and kind of what a node defines."""
    line = getattr(node, "lineno", 1)
    match node:
        case ast.Name(id=name, ctx=ast.Store()):
            yield name, line, "variable"
        case ast.Attribute(attr=name, ctx=ast.Store()):
            yield name, node.end_lineno or line, "attribute"
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            yield from ((name, line, "variable") for name in names)
        case _ if type(node) in NAME_FIELDS:
            field, kind = NAME_FIELDS[type(node)]
            if name := getattr(node, field):
                yield name, line, kind


def check_source(source: str, path: Path) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(source)):
        for name, line, kind in iter_definitions(node):
            if is_banned(name):
                yield Finding(path, line, f"{kind} {name!r}: name it after what it holds or does")
            elif kind == "function" and is_bare_participle(name):
                yield Finding(path, line, f"function {name!r}: name it with a verb and an object")


def check_file(path: Path) -> Iterator[Finding]:
    folders = path.relative_to(ROOT).parts[:-1] if path.is_relative_to(ROOT) else ()
    for name in (*folders, path.stem.removeprefix("test_")):
        if is_banned(name):
            yield Finding(path, 1, f"module {name!r}: name it after its concern")
    yield from check_source(path.read_text(encoding="utf-8"), path)


if __name__ == "__main__":
    sys.exit(run_check(check_file, sys.argv[1:], DEFAULT_PATHS, {".py"}))
