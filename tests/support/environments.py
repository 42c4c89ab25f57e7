"""Virtual environments with other versions than the running one, made once and kept between runs."""

import fcntl
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "environments"

CONSTRAINTS = ROOT / ".ci" / "constraints"

# The releases of MLflow that the matrix tests. The last one is in the environment that runs the tests.
MLFLOW_VERSIONS = ("3.6.0", "3.8.1", "3.10.1", "3.13.0", "3.17.2")

# Kept from when this module is loaded: during a test the variables pip may depend on (HOME with its settings,
# proxies, certificates) are taken away. Without PYTHONPATH, whose packages pip would take for installed.
_OUTSIDE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def read_lock(name: str) -> list[str]:
    """Return the exact versions in `.ci/constraints/NAME.txt`, which `make lock` resolved from `NAME.in`."""
    lines = (CONSTRAINTS / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def environment(
    name: str, requirements: Sequence[str], *, editable: Path | None = None, base: Path = Path(sys.executable)
) -> Path:
    """Return the Python of an environment with these requirements, making it when it is not there yet.

    Safe when several processes ask at once: one makes it, the others wait. An environment whose making was
    broken off, or whose requirements or Python have changed, is made anew.

    Args:
        name: The name of its folder under `.cache/environments`.
        requirements: What pip is to install.
        editable: A project to install editable besides.
        base: The Python that it is made with, where that of the tests is too old.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    marker = folder / "requirements.json"
    wanted = json.dumps(
        {
            "python": f"{sys.version_info.major}.{sys.version_info.minor}"
            if base == Path(sys.executable)
            else str(base),
            "requirements": list(requirements),
            "editable": str(editable) if editable else None,
        }
    )
    with _locked(FOLDER / f"{name}.lock"):
        if python.exists() and marker.is_file() and marker.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run(str(base), "-m", "venv", str(folder))
        project = ["--editable", str(editable)] if editable else []
        _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements, *project)
        # Last, and by renaming: the marker says that all before it is complete.
        unfinished = marker.with_suffix(".unfinished")
        unfinished.write_text(wanted)
        unfinished.replace(marker)
    return python


def fresh_environment(folder: Path, *requirements: str) -> Path:
    """Return the Python of an environment with these requirements only, in the newest versions, as users get them.

    Args:
        folder: Where it is made, which is the test's own.
        *requirements: What pip is to install.
    """
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements)
    return python


def mlflow_python(version: str, *more: str) -> Path:
    """Return a Python that has this version of MLflow: the running one, or an environment's.

    Args:
        version: The version.
        more: Packages besides, which the running one has as it is.
    """
    try:
        if importlib.metadata.version("mlflow") == version:
            return Path(sys.executable)
    except importlib.metadata.PackageNotFoundError:
        pass
    return environment("-".join(["mlflow", version, *more]), [*read_lock(f"mlflow-{version}"), *more])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or its process dies
        yield


def _run(*command: str) -> None:
    done = subprocess.run(command, env=_OUTSIDE, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).splitlines()[-20:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n" + "\n".join(said))
