"""The libraries of the components in tests/polyglot: Java's by Maven, JavaScript's by npm, cached for the user."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.environments import ROOT, lock_file
from support.needs import executable

SOURCES = ROOT / "tests" / "polyglot"
# Copied when this module is loaded, because tests replace HOME, where Maven and npm keep settings and caches.
_ENVIRONMENT = dict(os.environ)
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow-otlp-exporter"


def install_java_libraries() -> Path:
    """Return the folder of the jars that pom.xml names."""
    command = [str(executable("mvn")), "-q", "-B", "-f", "pom.xml", "dependency:copy-dependencies"]
    return _install("jars", ("pom.xml",), [*command, "-DoutputDirectory={folder}"])


def install_agent() -> Path:
    """Return a folder with agent.mjs and the libraries that package-lock.json names."""
    return _install("agent", ("package.json", "package-lock.json", "agent.mjs"), [str(executable("npm")), "ci"])


def install_vercel_ai() -> Path:
    """Return a folder with the libraries of docs/frameworks/vercel-ai.md."""
    files = ("vercel-ai/package.json", "vercel-ai/package-lock.json")
    return _install("vercel-ai", files, [str(executable("npm")), "ci"])


def _install(name: str, files: Sequence[str], command: Sequence[str]) -> Path:
    digest = hashlib.sha256(b"".join((SOURCES / file).read_bytes() for file in files)).hexdigest()[:16]
    folder = _CACHE / f"polyglot-{name}-{digest}"
    with lock_file(_CACHE / f"polyglot-{name}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            for file in files:
                shutil.copy(SOURCES / file, unfinished)
            words = [word.format(folder=unfinished) for word in command]
            completed = subprocess.run(
                words, cwd=unfinished, env=_ENVIRONMENT, capture_output=True, text=True, check=False
            )
            if completed.returncode:
                raise RuntimeError(f"{' '.join(words)}:\n{completed.stdout[-2000:]}{completed.stderr[-2000:]}")
            unfinished.rename(folder)
    return folder
