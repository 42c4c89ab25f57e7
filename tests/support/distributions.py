"""The wheel and the sdist, built as `make dist` builds them."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

from support.environments import ROOT

# Files that git ignores, and folders of other tools.
_IGNORED = shutil.ignore_patterns(
    "__pycache__", "*.egg-info", ".git", ".venv", ".*cache", ".demo", ".hypothesis", "dist"
)


@dataclass(frozen=True)
class Distributions:
    """The results of a build."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> list[str]:
        """Return the names in the wheel, in their order."""
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.namelist()

    def sdist_names(self) -> list[str]:
        """Return the names in the sdist, without its top-level folder."""
        with tarfile.open(self.sdist) as archive:
            return [member.name.partition("/")[2] for member in archive.getmembers()]

    def wheel_text(self, name: str) -> str:
        """Return a file of the wheel; `*.dist-info` stands for its metadata folder."""
        folder = "-".join(self.wheel.name.split("-")[:2]) + ".dist-info"
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(name.replace("*.dist-info", folder)).decode()

    def metadata(self) -> Message:
        """Return the wheel's metadata; its payload is the description."""
        return Parser().parsestr(self.wheel_text("*.dist-info/METADATA"))


def copy_project(folder: Path) -> Path:
    """Copy the project's files as in a clone, without build results and caches."""
    shutil.copytree(ROOT, folder, ignore=_IGNORED)
    return folder


def build(project: Path, *, umask: int = 0o022, **variables: str) -> Distributions:
    """Build the sdist, and the wheel from it, into `dist` of the project, with the installed `build` and `hatchling`.

    Like `make dist`, it removes SOURCE_DATE_EPOCH from the environment, unless `variables` has it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "build", "--no-isolation", str(project)]
    completed = subprocess.run(
        command, env=environment | variables, umask=umask, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        raise RuntimeError(f"the build ended with {completed.returncode}:\n{completed.stdout}{completed.stderr}")
    (wheel,) = (project / "dist").glob("*.whl")
    (sdist,) = (project / "dist").glob("*.tar.gz")
    return Distributions(wheel, sdist)
