"""An agent without a line of tracing in it.

What brings its traces to MLflow is how it is started:

    pip install 'mlflow-otlp-exporter[auto,langchain]' langchain
    mlflow-otlp run python examples/zero_code.py

`mlflow-otlp run` is OpenTelemetry's `opentelemetry-instrument` with all set that MLflow needs, and says what it sets.
"""

from __future__ import annotations

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolCall


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"rain in {city}"


class Script(GenericFakeChatModel):
    """A chat model that says what it is told to: no key, no network. A real one would stand here."""

    def bind_tools(self, *_: object, **__: object) -> Script:
        """The script knows its tools."""
        return self


def main() -> None:
    """Asks one question."""
    said = [
        AIMessage("", tool_calls=[ToolCall(name="get_weather", args={"city": "Lyon"}, id="call_1", type="tool_call")]),
        AIMessage("Take an umbrella."),
    ]
    agent = create_agent(Script(messages=iter(said)), [get_weather], name="weather-agent")
    state = agent.invoke({"messages": [HumanMessage("Will it rain in Lyon?")]})
    print(state["messages"][-1].content)


if __name__ == "__main__":
    main()
