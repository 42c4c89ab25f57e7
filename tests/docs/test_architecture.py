"""The architecture page names every thread, every lock and every module as they are in the source."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from support.environments import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = ROOT / "src" / "mlflow_otlp_exporter"
SECTION = PAGE.partition("\n## Threads and locks\n")[2].partition("\n## ")[0]
_COMMON = "mlflow_otlp_exporter._internal.common"
_OUR_PRIMITIVES = {f"{_COMMON}.primitives.LazyCondition", f"{_COMMON}.work_queue.WakeUp"}
_MODULES = {"threading", "queue", "concurrent.futures", "multiprocessing", "asyncio"}


class Primitive(NamedTuple):
    """A lock, an event or a queue between threads, by the place where it is created, or a thread, by its name."""

    name: str
    kind: str


class PrimitiveFinder(ast.NodeVisitor):
    """Collects the threads and locks that a module creates."""

    def __init__(self, module: str) -> None:
        self.primitives: set[Primitive] = set()
        self._scope, self._target = [module], ""
        self._imported: dict[str, str] = {}
        self._globals: set[str] = set()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_Global(self, node: ast.Global) -> None:
        self._globals.update(node.names)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            self._scope.append(node.name)
            super().visit(node)
            self._scope.pop()
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target, value in split_assignment(node):
                self._target = ast.unparse(target)
                super().visit(value)
            self._target = ""
        else:
            super().visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func.value if isinstance(node.func, ast.Subscript) else node.func)
        full_name = self._imported.get(name, name)
        module, _, kind = full_name.rpartition(".")
        if full_name in _OUR_PRIMITIVES or (module in _MODULES and (kind[0].isupper() or kind == "local")):
            self.primitives.add(Primitive(thread_name(node) if kind == "Thread" else self.place(), kind))
        self.generic_visit(node)

    def place(self) -> str:
        """Return `module.Class.attribute`, else module and function with the variable, if it is assigned to one."""
        attribute = self._target.removeprefix("self.")
        depth = 2 if attribute != self._target else 1 if attribute in self._globals else len(self._scope)
        return ".".join(filter(None, [*self._scope[:depth], attribute]))


def split_assignment(node: ast.Assign | ast.AnnAssign) -> list[tuple[ast.expr, ast.expr]]:
    """Return each target of an assignment with its value."""
    target, value = node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=True))
    return [] if value is None else [(target, value)]


def thread_name(call: ast.Call) -> str:
    """Return the argument `name`, with an asterisk for each variable part."""
    argument = next((keyword.value for keyword in call.keywords if keyword.arg == "name"), None)
    assert argument is not None, f"a thread without a name: {ast.unparse(call)}"
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)


def find_primitives(source: str, module: str) -> set[Primitive]:
    finder = PrimitiveFinder(module)
    finder.visit(ast.parse(source))
    return finder.primitives


def primitives_of_package() -> set[Primitive]:
    primitives: set[Primitive] = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        primitives |= find_primitives(
            path.read_text(), ".".join(part for part in parts if part not in ("_internal", "__init__"))
        )
    return primitives


def named_primitives() -> Iterator[Primitive]:
    """Yield what the two tables name: threads in the first column, locks with their kind in the second."""
    for cells in (row.split(" | ") for row in SECTION.splitlines() if row.startswith("| `")):
        name = cells[0].strip("| `")
        yield Primitive(name, "Thread" if name.startswith("mlflow-otlp") else cells[1])


def test_section_names_every_thread_and_lock_of_the_source() -> None:
    named = list(named_primitives())
    assert len(named) == len(set(named))
    assert sorted(primitives_of_package()) == sorted(named)


SOURCE = """
import threading
from queue import SimpleQueue as Queue
from threading import Event

guard: object = threading.Lock()

class Box:
    def __init__(self):
        self._lock, self._items = threading.Condition(), Queue[int]()
        self.count = threading.active_count()

    def lock_for(self, key):
        pause = Event()
        return self.locks.setdefault(key, threading.RLock())

def start(number):
    global guard
    guard = threading.Lock()
    threading.Thread(target=print, name=f"box-{number}").start()
"""


def test_find_primitives_names_place_or_thread() -> None:
    assert find_primitives(SOURCE, "m") == {
        Primitive("m.guard", "Lock"),
        Primitive("m.Box._lock", "Condition"),
        Primitive("m.Box._items", "SimpleQueue"),
        Primitive("m.Box.lock_for.pause", "Event"),
        Primitive("m.Box.lock_for", "RLock"),
        Primitive("box-*", "Thread"),
    }


def test_find_primitives_with_thread_without_name_fails() -> None:
    with pytest.raises(AssertionError, match="without a name"):
        find_primitives("import threading\nthreading.Thread(target=print)", "m")


def test_modules_and_folders_of_page_exist() -> None:
    paths = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", PAGE)
    assert len(paths) > 30
    roots = (PACKAGE / "_internal", PACKAGE, PACKAGE.parent, ROOT, ROOT / "tests")
    assert [path for path in paths if not any((root / path).exists() for root in roots)] == []
