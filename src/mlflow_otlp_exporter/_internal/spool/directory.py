"""Where a spool lies: for each user, target, and identity of the credential a folder that nobody else can read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

_NAME = "mlflow-otlp-exporter"
_PRIVATE = 0o700
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


def create_spool_directory(given: str | None, name: str, environment: Mapping[str, str]) -> Path:
    """The folder of a spool, made if it is missing: the first that can be had.

    Args:
        given: Where the user wants it (`spool_dir`); nothing else counts then.
        name: The folder's name there.
        environment: Environment variables.

    Raises:
        OSError: There is none.
    """
    problems: list[str] = []
    for root in candidate_roots(given, environment):
        try:
            if not given:
                create_private_directory(root)
            create_private_directory(root / name)
            if os.access(root / name, os.W_OK | os.X_OK):
                return root / name
            problems.append(f"{root / name} cannot be written")
        except OSError as error:
            problems.append(f"{root}: {error.strerror or error}")
    raise OSError("; ".join(problems))


def existing_spool_directory(given: str | None, name: str, environment: Mapping[str, str]) -> Path | None:
    """The folder of a spool, if there is one already that is this user's own; the arguments are those above."""
    for root in candidate_roots(given, environment):
        try:
            found = os.lstat(root / name)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid()):
            return root / name
    return None


def candidate_roots(given: str | None, environment: Mapping[str, str]) -> Iterator[Path]:
    """The folders in which spools may lie, the best first.

    Args:
        given: What the user set (`spool_dir`); nothing else counts then.
        environment: Environment variables.
    """
    if given:
        yield Path(given)
        return
    state = environment.get("XDG_STATE_HOME") or environment.get("LOCALAPPDATA")
    if state and Path(state).is_absolute():  # as the XDG specification has it
        yield Path(state, _NAME)
    else:
        home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises without a home
        if Path(home).is_absolute():
            yield Path(home, ".local", "state", _NAME)
    yield Path(tempfile.gettempdir(), f"{_NAME}-{_user()}")


def _user() -> int | str:
    return os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def folder_name(url: str, identity: str, namespace: str | None = None) -> str:
    """The name of the folder for a target.

    Args:
        url: The OTLP endpoint.
        identity: Whose credential it is, such as `user ada`; never the credential.
        namespace: The pod's, where requests that name no workspace go to the one of that name.
    """
    host = _UNSAFE.sub("-", urlsplit(url).netloc.rpartition("@")[2])[:60]
    whose = f"{url}\n{identity}" + (f"\n{namespace}" if namespace else "")
    digest = hashlib.sha256(whose.encode()).hexdigest()
    return f"{host}-{digest[:16]}"


def create_private_directory(folder: Path) -> None:
    """Makes a folder that only its owner can use, with all above it.

    Args:
        folder: May exist already.

    Raises:
        OSError: It cannot be made, or belongs to somebody else.
    """
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(_PRIVATE)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            # In a folder that all may write to, somebody else may have made it to read what comes.
            raise PermissionError(f"{folder} belongs to another user")
        if stat.S_IMODE(found.st_mode) != _PRIVATE:
            folder.chmod(_PRIVATE)


def _make(folder: Path) -> None:
    """What is missing of a path; nothing of it is open to others, as it is nobody else's business."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(_PRIVATE)
