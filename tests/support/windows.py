"""Simulate Windows in this process: import `support.windows` before the library.

It removes what only POSIX has and this library could use. Open files can neither be removed nor replaced. `msvcrt`
locks files, but not the bytes that other processes read. Other differences of Windows (names, sockets, permissions)
are not simulated.
"""

import asyncio
import errno
import fcntl
import multiprocessing.util
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import export

# Imported first, because they check the platform on import.
LOADED = (asyncio, multiprocessing.util, requests, ssl, subprocess, tempfile, trace_exporter, export)
_REMOVED = (
    *("fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getgid", "getpgid", "setsid", "killpg", "waitid"),
    *("O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK", "O_SYNC", "fchmod", "fchown", "chown", "lchown"),
    *("statvfs", "fstatvfs", "sysconf", "sched_getaffinity", "mkfifo", "pread", "pwrite", "sendfile", "uname"),
)
_MODULES = ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog")


def _is_open(path: os.PathLike[str] | str) -> bool:
    real_path = os.path.realpath(path)
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path is what is changed here
        try:
            if os.path.realpath(f"/proc/self/fd/{descriptor}") == real_path:
                return True
        except OSError:
            continue
    return False


def _deny(*paths: Any) -> None:
    for path in paths:
        if os.path.exists(path) and _is_open(path):  # noqa: PTH110 - likewise
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))


def _locking(descriptor: int, mode: int, count: int) -> None:
    assert (mode, count) == (2, 1)
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    assert 1 << 24 < position < 1 << 31, "other processes cannot read locked bytes, and the C library counts to 2 GiB"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def _simulate_windows() -> None:
    unlink, replace, rename = Path.unlink, Path.replace, Path.rename

    def denied_unlink(path: Path, missing_ok: bool = False) -> None:
        _deny(path)
        unlink(path, missing_ok=missing_ok)

    def denied_replace(path: Path, target: Any) -> Path:
        _deny(path, target)
        return replace(path, target)

    def denied_rename(path: Path, target: Any) -> Path:
        _deny(path, target)
        return rename(path, target)

    for name, denied in (("unlink", denied_unlink), ("replace", denied_replace), ("rename", denied_rename)):
        setattr(Path, name, denied)
    module = ModuleType("msvcrt")
    module.locking, module.LK_NBLCK = _locking, 2  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = module
    for name in _MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    usage = shutil.disk_usage("/")
    setattr(shutil, "disk_usage", lambda _: usage)  # noqa: B010 - its parameter has another name
    for name in _REMOVED:
        if hasattr(os, name):
            delattr(os, name)
    for name in ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGSTOP"):
        delattr(signal, name)
    sys.platform = "win32"


_simulate_windows()
