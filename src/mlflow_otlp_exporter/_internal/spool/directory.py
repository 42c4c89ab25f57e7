"""Spool directories: one for each user, target and identity of the credential, readable by its owner only."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.common.files import create_private_directory, secure_directory

_APPLICATION = "mlflow-otlp-exporter"
_UNSAFE = r"[^A-Za-z0-9.-]+"


def create_spool_directory(spool_dir: str | None, name: str, environment: Mapping[str, str]) -> Path:
    """Return the first candidate that is writable, created where it is missing; raises OSError if there is none."""
    problems: list[str] = []
    for root in candidate_roots(spool_dir, environment):
        try:
            if not spool_dir:
                create_private_directory(root)
            create_private_directory(root / name)
            if os.access(root / name, os.W_OK | os.X_OK):
                return root / name
            problems.append(f"{root / name} is not writable")
        except OSError as error:
            problems.append(f"{root}: {error.strerror or error}")
    raise OSError("; ".join(problems))


def find_spool_directory(spool_dir: str | None, name: str, environment: Mapping[str, str]) -> Path | None:
    """Return the first candidate that exists and belongs to this user; creates nothing."""
    for root in candidate_roots(spool_dir, environment):
        with suppress(OSError):
            secure_directory(root / name)
            return root / name
    return None


def candidate_roots(spool_dir: str | None, environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the directories that may hold spools, best first; with the setting `spool_dir` only that one."""
    if spool_dir:
        yield Path(spool_dir)
        return
    state_home = environment.get("XDG_STATE_HOME") or environment.get("LOCALAPPDATA")
    if state_home and Path(state_home).is_absolute():  # the XDG specification ignores relative paths
        yield Path(state_home, _APPLICATION)
    else:
        home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises without a home
        if Path(home).is_absolute():
            yield Path(home, ".local", "state", _APPLICATION)
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    yield Path(tempfile.gettempdir(), f"{_APPLICATION}-{user}")


def folder_name(url: str, identity: str, namespace: str | None = None) -> str:
    """Return the folder name of a target; `identity` names the owner of the credential, `namespace` that of the pod."""
    host = re.sub(_UNSAFE, "-", urlsplit(url).netloc.rpartition("@")[2])[:60]
    target = f"{url}\n{identity}" + (f"\n{namespace}" if namespace else "")
    digest = hashlib.sha256(target.encode()).hexdigest()
    return f"{host}-{digest[:16]}"
