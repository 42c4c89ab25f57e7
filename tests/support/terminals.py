"""Runs programs with a pseudo-terminal, as a person would see them."""

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def run_in_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    is_stdout_shown: bool = True,
) -> str:
    """Run a program whose stderr, and perhaps stdout, is a terminal, and return what it wrote there.

    Raises:
        AssertionError: Its status is not 0; the message has the output.
    """
    terminal, stderr = pty.openpty()
    stdout = stderr if is_stdout_shown else None
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=stdout, stderr=stderr, start_new_session=True
    ) as process:
        os.close(stderr)
        chunks = []
        with suppress(OSError):  # Linux raises when the last writer has closed the terminal
            while chunk := os.read(terminal, 65536):
                chunks.append(chunk)
        os.close(terminal)
    output = b"".join(chunks).decode().replace("\r\n", "\n")
    assert process.returncode == 0, output
    return output
