"""One FastAPI process for many tenants: each tenant's traces go to an experiment of its own.

    uvicorn multi_tenant_fastapi:app --app-dir examples
    curl -H 'x-tenant: acme' 'localhost:8000/ask?question=rain'

With workspaces (`mlflow server --enable-workspaces`), give `workspace=` as well. A tenant whose experiment is denied or
slow delays no other one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Header

from mlflow_otlp_exporter import configure, trace_context, traced

configure(experiment="shared")  # where traces go that belong to no tenant
app = FastAPI()


@traced(kind="TOOL")
async def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"rain in {city}"


@traced(kind="AGENT")
async def answer(question: str) -> str:
    """Answers a question: the root of a trace."""
    return f"{question}? {await get_weather('Lyon')}"


async def tenant(
    x_tenant: Annotated[str, Header(pattern="^[a-z0-9-]+$")], x_session: Annotated[str | None, Header()] = None
) -> AsyncIterator[None]:
    """Says for the whole of a request where its traces go and which session they belong to.

    Where a trace goes is fixed when its first span starts: with an instrumentation of FastAPI, which starts one before
    any dependency is asked, do this in an ASGI middleware outside of it.
    """
    async with trace_context(experiment=f"tenant-{x_tenant}", session=x_session, tags={"tenant": x_tenant}):
        yield


@app.get("/ask", dependencies=[Depends(tenant)])
async def ask(question: str) -> str:
    """Answers a tenant's question."""
    return await answer(question)
