"""FastAPI under uvicorn. FastAPI creates spans itself, so the tenant is set outside the FastAPI application."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from agent import answer, tenant_context
from fastapi import FastAPI

from mlflow_otlp_exporter import configure

configure()
api = FastAPI()


@api.get("/")
async def ask(number: int) -> str:
    await asyncio.sleep(0.01)  # all requests are in flight at once
    return await asyncio.to_thread(answer, f"question {number}")


async def app(
    scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        await api(scope, receive, send)
        return
    async with tenant_context(int(parse_qs(scope["query_string"].decode())["number"][0])):
        await api(scope, receive, send)
