"""The agent of all apps here: each number is a user's question, of one of five tenants."""

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


def tenant(number: int) -> trace_context:
    """Whose question it is."""
    return trace_context(
        session=f"session-{number}",
        user=f"user-{number % 3}",
        tags={"number": str(number)},
        workspace="team-a" if number % 2 else "team-b",
        experiment=f"{KIND}-{number % TENANTS}",
    )


def serve(number: int) -> str:
    """Answers one question."""
    with tenant(number):
        return answer(f"question {number}")
