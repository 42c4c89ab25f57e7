"""The tests of each lane, as pytest collects them; also the pytest plugin that prints them."""

import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from support.environments import ROOT

_TIMEOUT_SECONDS = 300


class Lanes(NamedTuple):
    """Test functions by module and name: of `make test`, of `make test-matrix`, and of CI.

    CI runs the first and some files of the second. Both of them may have parameters of one test function.
    """

    default: set[tuple[str, str]]
    matrix: set[tuple[str, str]]
    ci: set[tuple[str, str]]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Print the lane, module and name of each collected test."""
    for item in session.items:
        module, _, name = item.nodeid.removeprefix("tests/").partition(".py::")
        lane = "matrix" if item.get_closest_marker("matrix") else "default"
        print(f"collected {lane} {module.replace('/', '.')} {name.split('[')[0]}")


def collect_lanes() -> Lanes:
    """Collect all tests with pytest, and read the matrix files of CI's script."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "--matrix", "-p", "no:cacheprovider"]
    command += ["-p", "support.lanes"]
    environment = {**os.environ, "PYTHONPATH": path}
    completed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-3000:]
    tests_by_lane: dict[str, set[tuple[str, str]]] = {"default": set(), "matrix": set()}
    for lane, module, name in re.findall(r"^collected (\w+) ([\w.]+) (\w+)$", completed.stdout, re.MULTILINE):
        tests_by_lane[lane].add((module, name))
    listed = _files_of_ci()
    return Lanes(
        **tests_by_lane, ci=tests_by_lane["default"] | {test for test in tests_by_lane["matrix"] if test[0] in listed}
    )


def _files_of_ci() -> set[str]:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^variables=\(.* REQUIRE_ALL=1\)$", script, re.MULTILINE), "CI must not skip tests"
    assert re.search(r"^isolated make test$", script, re.MULTILINE)
    assert re.search(r'^isolated make test-matrix PYTEST="\$\{matrix\[\*\]\}"$', script, re.MULTILINE)
    files = re.search(r"^matrix=\(\n(.*?)^\)$", script, re.MULTILINE | re.DOTALL)
    assert files is not None
    return {path.replace("/", ".") for path in re.findall(r"^ *tests/([\w/]+)\.py$", files[1], re.MULTILINE)}
