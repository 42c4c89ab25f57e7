"""What some tests need besides Python: how it is found here, and how to get it where it is missing."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Need:
    """A program that no Python package brings.

    Attributes:
        executables: Names for it; the first one found counts.
        how: How to get it.
        folders: Where to look besides PATH, as globs: Debian keeps servers out of a user's PATH.
    """

    executables: Sequence[str]
    how: str
    folders: Sequence[str] = ()

    def find(self) -> Path | None:
        """Return the executable, or None when it is not on this machine."""
        found = [str(match) for folder in self.folders for match in sorted(Path("/").glob(folder.lstrip("/")))]
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *reversed(found)])
        for name in self.executables:
            if executable := shutil.which(name, path=path):
                return Path(executable)
        return None


NEEDS = {
    "chromium": Need(
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
        "Debian: apt-get install chromium",
    ),
    "nginx": Need(("nginx",), "Debian: apt-get install nginx-light", ("/usr/sbin", "/usr/local/sbin")),
    "node": Need(("node", "nodejs"), "Debian: apt-get install nodejs"),
    "openssl": Need(("openssl",), "Debian: apt-get install openssl"),
    # initdb lies beside pg_ctl and postgres, and is what a client-only installation lacks.
    "postgresql": Need(("initdb",), "Debian: apt-get install postgresql", ("/usr/lib/postgresql/*/bin",)),
}


def executable(program: str) -> Path:
    """Return the executable of a need that the test is marked with, such as initdb for "postgresql"."""
    found = NEEDS[program].find()
    assert found is not None, f"{program} is not here; mark the test with @pytest.mark.needs({program!r})"
    return found
