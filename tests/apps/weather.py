"""An agent that asks a model and calls a tool, without any network."""

import logging
import os

from opentelemetry import trace

from mlflow_otlp_exporter import configure, traced

logging.basicConfig(level=os.environ.get("LOG", "ERROR"), format="%(levelname)s %(message)s")
configure(auto_instrument=False)


@traced(kind="AGENT")
def answer(question: str) -> str:
    attributes: dict[str, str | int] = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-4o-mini",
        "input.value": question,
        "output.value": "Take an umbrella.",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 5,
    }
    trace.get_tracer("weather").start_span("ChatOpenAI", attributes=attributes).end()
    try:
        get_weather("Lyon")
    except TimeoutError:
        return "Take an umbrella, to be safe."
    return "It is sunny."


@traced(kind="TOOL")
def get_weather(city: str) -> str:
    raise TimeoutError(f"no answer for {city}")


answer("Will it rain in Lyon?")
