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

# What git leaves out, and folders of other work beside it.
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "*.egg-info", ".git", ".venv", ".*cache", ".demo", ".hypothesis", "dist"
)


@dataclass(frozen=True)
class Distributions:
    """What a build has made."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> list[str]:
        """What lies in the wheel, in the order that it lies there."""
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.namelist()

    def sdist_names(self) -> list[str]:
        """What lies in the sdist, without its one folder."""
        with tarfile.open(self.sdist) as archive:
            return [member.name.partition("/")[2] for member in archive.getmembers()]

    def wheel_text(self, name: str) -> str:
        """A file of the wheel; `*.dist-info` stands for its folder of metadata."""
        folder = "-".join(self.wheel.name.split("-")[:2]) + ".dist-info"
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(name.replace("*.dist-info", folder)).decode()

    def metadata(self) -> Message:
        """The wheel's metadata; its payload is the description."""
        return Parser().parsestr(self.wheel_text("*.dist-info/METADATA"))


def copy_project(folder: Path) -> Path:
    """Copy the project's files as a clone has them, without what was built or cached beside them."""
    shutil.copytree(ROOT, folder, ignore=_LEFT_OUT)
    return folder


def build(project: Path, *, umask: int = 0o022, **variables: str) -> Distributions:
    """Build both with the `build` and the `hatchling` that run here, the wheel from the sdist.

    Args:
        project: The folder with the project's files; what is built lies in its `dist`.
        umask: The umask of the build's process.
        **variables: Variables of its environment; one is taken away unless it is given, as `make dist` does it:
            SOURCE_DATE_EPOCH.

    Raises:
        RuntimeError: The build failed; the message has what it said.
    """
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "build", "--no-isolation", str(project)]
    done = subprocess.run(
        command, env=environment | variables, umask=umask, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the build ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    (wheel,) = (project / "dist").glob("*.whl")
    (sdist,) = (project / "dist").glob("*.tar.gz")
    return Distributions(wheel, sdist)
