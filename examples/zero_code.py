"""Run an agent that contains no tracing code.

Its traces reach MLflow because of the command that starts it:

    pip install 'mlflow-otlp-exporter[auto,langchain]' langchain
    mlflow-otlp run python examples/zero_code.py

`mlflow-otlp run` is OpenTelemetry's `opentelemetry-instrument` with the settings that MLflow needs. It prints the
settings.
"""

from __future__ import annotations

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolCall


@tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


class Script(GenericFakeChatModel):
    """A chat model with scripted answers, without API key and network. A real app would use a real model."""

    def bind_tools(self, *_: object, **__: object) -> Script:
        """Ignore the tools: the answers are scripted."""
        return self


def main() -> None:
    """Ask one question."""
    answers = [
        AIMessage("", tool_calls=[ToolCall(name="get_weather", args={"city": "Lyon"}, id="call_1", type="tool_call")]),
        AIMessage("Take an umbrella."),
    ]
    agent = create_agent(Script(messages=iter(answers)), [get_weather], name="weather-agent")
    state = agent.invoke({"messages": [HumanMessage("Will it rain in Lyon?")]})
    print(state["messages"][-1].content)


if __name__ == "__main__":
    main()
