"""Serve many tenants in one FastAPI process, with one experiment per tenant.

    uvicorn multi_tenant_fastapi:app --app-dir examples
    curl -H 'x-tenant: acme' 'localhost:8000/ask?question=rain'

If the server has workspaces (`mlflow server --enable-workspaces`), also set `workspace=`. A tenant whose experiment is
denied or slow does not delay other tenants.
"""

from __future__ import annotations

import re

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlflow_otlp_exporter import configure, trace_context, traced

configure(experiment="shared")  # for traces without a tenant
api = FastAPI()


@traced(kind="TOOL")
async def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


@traced(kind="AGENT")
async def answer(question: str) -> str:
    """Answer a question: the root span of a trace."""
    return f"{question}? {await get_weather('Lyon')}"


@api.get("/ask")
async def ask(question: str) -> str:
    """Answer a tenant's question."""
    return await answer(question)


class Tenants:
    """Set the experiment and the session of each request.

    This class wraps the whole app instead of being a FastAPI middleware, because the destination of a trace is fixed
    when its first span starts. The first span is the request span of FastAPI or of its instrumentation.

    Args:
        wrapped_app: The FastAPI app.
    """

    def __init__(self, wrapped_app: ASGIApp) -> None:
        self._wrapped_app = wrapped_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        tenant = headers.get("x-tenant", "")
        if not re.fullmatch("[a-z0-9-]+", tenant):  # in production, use the tenant of a token or certificate
            await self._wrapped_app(scope, receive, send)
            return
        with trace_context(experiment=f"tenant-{tenant}", session=headers.get("x-session"), tags={"tenant": tenant}):
            await self._wrapped_app(scope, receive, send)


app = Tenants(api)
