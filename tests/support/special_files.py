"""What may stand where a file is expected."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the path of a socket has at most 108 bytes


def make_link(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)


def make_second_name(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.hardlink_to(victim)


SPECIAL_FILES: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "it is a FIFO, not a regular file"),
    (Path.mkdir, "it is a directory, not a regular file"),
    (bind_socket, "it is a socket, not a regular file"),
    (make_link, "it is a symbolic link, not a regular file"),
    (make_second_name, "it has a second name (hard link)"),
]
