"""The agent that all apps in this folder use. Each number is a question of one of five tenants."""

import os

from mlflow_otlp_exporter import trace_context, traced

TENANTS = 5
KIND = os.environ["APP_KIND"]


@traced(kind="TOOL")
def get_weather(city: str) -> str:
    return f"rain in {city}"


@traced(kind="AGENT")
def answer(question: str) -> str:
    return f"{question} {get_weather('Lyon')}"


def tenant_context(number: int) -> trace_context:
    """The context of the tenant that asks this question."""
    return trace_context(
        session=f"session-{number}",
        user=f"user-{number % 3}",
        tags={"number": str(number)},
        workspace="team-a" if number % 2 else "team-b",
        experiment=f"{KIND}-{number % TENANTS}",
    )


def serve(number: int) -> str:
    """Answer one question."""
    with tenant_context(number):
        return answer(f"question {number}")
