"""One FastAPI process for many tenants: each tenant's traces go to an experiment of its own.

    uvicorn multi_tenant_fastapi:app --app-dir examples
    curl -H 'x-tenant: acme' 'localhost:8000/ask?question=rain'

With workspaces (`mlflow server --enable-workspaces`), give `workspace=` as well. A tenant whose experiment is denied or
slow delays no other one.
"""

from __future__ import annotations

import re

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlflow_otlp_exporter import configure, trace_context, traced

configure(experiment="shared")  # where traces go that belong to no tenant
api = FastAPI()


@traced(kind="TOOL")
async def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"rain in {city}"


@traced(kind="AGENT")
async def answer(question: str) -> str:
    """Answers a question: the root of a trace."""
    return f"{question}? {await get_weather('Lyon')}"


@api.get("/ask")
async def ask(question: str) -> str:
    """Answers a tenant's question."""
    return await answer(question)


class Tenants:
    """Says for the whole of a request where its traces go, and which session they belong to.

    Around the app, not one of its middlewares: where a trace goes is fixed when its first span starts, and that is
    FastAPI's own span of the request, or that of its instrumentation.

    Args:
        inner: The app.
    """

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        tenant = headers.get("x-tenant", "")
        if not re.fullmatch("[a-z0-9-]+", tenant):  # known by a token or a certificate, in earnest
            await self._inner(scope, receive, send)
            return
        with trace_context(experiment=f"tenant-{tenant}", session=headers.get("x-session"), tags={"tenant": tenant}):
            await self._inner(scope, receive, send)


app = Tenants(api)
