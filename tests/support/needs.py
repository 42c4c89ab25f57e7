"""Programs that some tests need: how to find them, and how to install them."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The user's home; tests replace HOME.
_HOME = Path.home()


@dataclass(frozen=True)
class Need:
    """A program that no Python package contains.

    Attributes:
        executables: Its possible names.
        how: How to install it.
        folders: Globs of folders in addition to PATH, because Debian keeps servers out of a user's PATH. Folders below
            the home folder come first.
    """

    executables: Sequence[str]
    how: str
    folders: Sequence[str] = ()

    def find(self) -> Path | None:
        """Return the executable, or None when it is not on this machine."""
        at_home = [match for folder in self.folders if folder[0] == "~" for match in sorted(_HOME.glob(folder[2:]))]
        others = [folder for folder in self.folders if folder[0] != "~"]
        matches = [match for folder in others for match in sorted(Path("/").glob(folder.lstrip("/")))]
        path = os.pathsep.join([*map(str, at_home), os.environ.get("PATH", os.defpath), *map(str, reversed(matches))])
        for name in self.executables:
            if executable := shutil.which(name, path=path):
                return Path(executable)
        return None


NEEDS = {
    "chromium": Need(
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
        "Debian: apt-get install chromium",
    ),
    "curl": Need(("curl",), "Debian: apt-get install curl"),
    # tests/collector needs the Go release that its go.mod names, or a Go that downloads that release.
    "go": Need(("go",), "Debian: apt-get install golang-go", ("/usr/local/go/bin",)),
    "java": Need(("java",), "Debian: apt-get install default-jdk-headless"),
    "mvn": Need(("mvn",), "Debian: apt-get install maven"),
    "nginx": Need(("nginx",), "Debian: apt-get install nginx-light", ("/usr/sbin", "/usr/local/sbin")),
    "node": Need(("node", "nodejs"), "Debian: apt-get install nodejs"),
    "npm": Need(("npm",), "Debian: apt-get install npm"),
    "openssl": Need(("openssl",), "Debian: apt-get install openssl"),
    "python3.10": Need(("python3.10",), "pyenv: pyenv install 3.10", ("~/.pyenv/versions/3.10*/bin",)),
    # pyenv's own `python3.12` on PATH works only where that version is enabled.
    "python3.12": Need(
        ("python3.12", "python3.13"),
        "pyenv: pyenv install 3.12, or Debian 13 (whose Python is 3.13)",
        ("~/.pyenv/versions/3.1[23]*/bin",),
    ),
    "python3.13": Need(("python3.13",), "pyenv: pyenv install 3.13, or Debian 13", ("~/.pyenv/versions/3.13*/bin",)),
    # initdb is next to pg_ctl and postgres; an installation of only the client lacks it.
    "postgresql": Need(("initdb",), "Debian: apt-get install postgresql", ("/usr/lib/postgresql/*/bin",)),
}


def executable(program: str) -> Path:
    """Return the executable of a need that the test is marked with, such as initdb for "postgresql"."""
    path = NEEDS[program].find()
    assert path is not None, f"{program} is missing; mark the test with @pytest.mark.needs({program!r})"
    return path
