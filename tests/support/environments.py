"""Virtual environments with other versions, created once and reused in later runs."""

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

# The releases of MLflow that the matrix tests. The environment that runs the tests has 3.17.2.
MLFLOW_VERSIONS = ("3.6.0", "3.8.1", "3.10.1", "3.13.0", "3.17.2", "3.18.0")
# The registry lacks mlflow-skinny and mlflow-tracing of this release. The wheel of mlflow holds all files of both: it
# replaces the older release that `.ci/constraints/mlflow-3.18.0.in` names.
_WHEEL_ONLY = frozenset({"3.18.0"})
_MLFLOW_PACKAGES = ("mlflow", "mlflow-skinny", "mlflow-tracing")

# Copied when this module is loaded, because tests remove variables that pip may need (HOME with its settings, proxies,
# certificates). Without PYTHONPATH, whose packages pip would regard as installed.
_PIP_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def read_lock(name: str) -> list[str]:
    """Return the exact versions in `.ci/constraints/NAME.txt`, which `make lock` resolved from `NAME.in`."""
    lines = (CONSTRAINTS / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def environment(
    name: str,
    requirements: Sequence[str],
    *,
    editable: Path | None = None,
    base: Path = Path(sys.executable),
    mlflow_wheel: str | None = None,
) -> Path:
    """Return the Python of the environment `.cache/environments/NAME` with these requirements; create it if missing.

    Several processes may call this at once: one creates the environment, the others wait. An environment that is
    incomplete, or whose requirements or Python changed, is created again. `base` is the Python for environments that
    need a newer one than the tests; `editable` is a project for an editable install; `mlflow_wheel` is the version of
    the wheel of mlflow that replaces mlflow and its parts, without dependencies of its own.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    marker = folder / "requirements.json"
    values: dict[str, object] = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}" if base == Path(sys.executable) else str(base),
        "requirements": list(requirements),
        "editable": str(editable) if editable else None,
    }
    if mlflow_wheel is not None:
        values["mlflow_wheel"] = mlflow_wheel
    contents = json.dumps(values)
    with lock_file(FOLDER / f"{name}.lock"):
        if python.exists() and marker.is_file() and marker.read_text() == contents:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run(str(base), "-m", "venv", str(folder))
        project = ["--editable", str(editable)] if editable else []
        _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements, *project)
        if mlflow_wheel is not None:
            _run(str(python), "-m", "pip", "uninstall", "--yes", *_MLFLOW_PACKAGES)
            wheel = f"mlflow=={mlflow_wheel}"
            _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", wheel)
        # Last, and by renaming: the marker states that the installation is complete.
        unfinished = marker.with_suffix(".unfinished")
        unfinished.write_text(contents)
        unfinished.replace(marker)
    return python


def fresh_environment(folder: Path, *requirements: str) -> Path:
    """Create an environment in `folder` with the newest versions of these requirements; return its Python."""
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements)
    return python


def mlflow_python(version: str, *more: str) -> Path:
    """Return a Python that has this version of MLflow: the running one, or that of an environment.

    The environment also gets the packages `more`, which the running Python has already.
    """
    try:
        if importlib.metadata.version("mlflow") == version:
            return Path(sys.executable)
    except importlib.metadata.PackageNotFoundError:
        pass
    name, requirements = "-".join(["mlflow", version, *more]), [*read_lock(f"mlflow-{version}"), *more]
    return environment(name, requirements, mlflow_wheel=version if version in _WHEEL_ONLY else None)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, or its process ends
        yield


def _run(*command: str) -> None:
    completed = subprocess.run(
        command, env=_PIP_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        output_lines = (completed.stdout + completed.stderr).splitlines()[-20:]
        raise RuntimeError(f"{' '.join(command)} ended with {completed.returncode}:\n" + "\n".join(output_lines))
