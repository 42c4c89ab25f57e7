"""A plain script. Argument: how it ends."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

from ends_work import start_open_trace, work

from mlflow_otlp_exporter import configure, flush

configure()
END = sys.argv[1]


async def wait() -> None:
    work()
    await asyncio.Event().wait()


def has_files() -> bool:
    paths = Path(os.environ["XDG_STATE_HOME"]).rglob("*")
    return any(path.suffix in (".otlp", ".journal") for path in paths)


def work_and_wait() -> None:
    work()
    threading.Event().wait()


if END == "next-start":
    # Like a longer run: until nothing is on disk. A second look, as a file may be moved into a folder seen before.
    while has_files() or has_files():
        flush(0.2)
    sys.exit()
if END == "asyncio":
    asyncio.run(wait())
if END == "open-trace":
    root = start_open_trace()
if END == "daemon-thread":
    threading.Thread(target=work_and_wait, daemon=True).start()
for _ in range(3):
    work()
if END == "sys.exit":
    sys.exit(3)
if END == "exception":
    raise RuntimeError
if END == "os._exit":
    os._exit(4)
if END == "fork":
    if os.fork() == 0:
        work()
        sys.exit(0)
    os.wait()
if END in ("signal", "open-trace"):
    while True:
        signal.pause()
