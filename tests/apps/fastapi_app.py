"""FastAPI under uvicorn."""

import asyncio

from agent import answer, tenant
from fastapi import FastAPI

from mlflow_otlp_exporter import configure

configure()
app = FastAPI()


@app.get("/")
async def ask(number: int) -> str:
    async with tenant(number):
        await asyncio.sleep(0.01)  # all requests are inside at once
        return await asyncio.to_thread(answer, f"question {number}")
