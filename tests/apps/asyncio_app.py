"""Many agents at once in one event loop."""

import asyncio
import sys

from agent import get_weather, tenant_context

from mlflow_otlp_exporter import configure, traced

configure()


@traced(kind="AGENT", name="answer")
async def answer(question: str) -> str:
    await asyncio.sleep(0.01)
    return f"{question} {get_weather('Lyon')}"


async def serve(number: int) -> str:
    with tenant_context(number):
        return await answer(f"question {number}")


async def main() -> None:
    await asyncio.gather(*map(serve, range(int(sys.argv[1]))))


asyncio.run(main())
