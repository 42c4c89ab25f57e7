"""An ASGI app that calls `configure()` when it is imported or in its lifespan, and works for each request."""

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ends_work import start_open_trace, work

from mlflow_otlp_exporter import configure

IN_LIFESPAN = os.environ.get("CONFIGURE") == "lifespan"
if not IN_LIFESPAN:
    configure()


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        await receive()
        if IN_LIFESPAN:
            configure()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        work()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/open":
        start_open_trace()
        await asyncio.Event().wait()
    elif scope["path"] == "/work":
        work()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
