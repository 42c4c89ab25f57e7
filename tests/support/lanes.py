"""Which tests run in which lane, as pytest itself collects them; a plugin of the pytest that is asked."""

import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from support.environments import ROOT

_SECONDS = 300


class Lanes(NamedTuple):
    """Test functions, by module and name.

    Attributes:
        default: What `make test` runs.
        matrix: What `make test-matrix` runs; of tests with parameters, some may be here and some there.
        ci: What CI runs: the first, and some files of the second.
    """

    default: set[tuple[str, str]]
    matrix: set[tuple[str, str]]
    ci: set[tuple[str, str]]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Prints what was collected, and whether it is of the matrix."""
    for item in session.items:
        module, _, name = item.nodeid.removeprefix("tests/").partition(".py::")
        lane = "matrix" if item.get_closest_marker("matrix") else "default"
        print(f"collected {lane} {module.replace('/', '.')} {name.split('[')[0]}")


def collect_lanes() -> Lanes:
    """Asks pytest, and reads which files of the matrix CI's script names."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "--matrix", "-p", "no:cacheprovider"]
    command += ["-p", "support.lanes"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, set[tuple[str, str]]] = {"default": set(), "matrix": set()}
    for lane, module, name in re.findall(r"^collected (\w+) ([\w.]+) (\w+)$", done.stdout, re.MULTILINE):
        found[lane].add((module, name))
    listed = _files_of_ci()
    return Lanes(**found, ci=found["default"] | {test for test in found["matrix"] if test[0] in listed})


def _files_of_ci() -> set[str]:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^variables=\(.* REQUIRE_ALL=1\)$", script, re.MULTILINE), "CI must not skip tests"
    assert re.search(r"^isolated make test$", script, re.MULTILINE)
    assert re.search(r'^isolated make test-matrix PYTEST="\$\{matrix\[\*\]\}"$', script, re.MULTILINE)
    files = re.search(r"^matrix=\(\n(.*?)^\)$", script, re.MULTILINE | re.DOTALL)
    assert files is not None
    return {path.replace("/", ".") for path in re.findall(r"^ *tests/([\w/]+)\.py$", files[1], re.MULTILINE)}
