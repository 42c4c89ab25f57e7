"""Run an agent that plans, calls tools, searches documents and answers. Each step becomes a span in MLflow.

One line in `main()` sends the spans to MLflow: `configure()` finds and enables the installed LangChain instrumentation.
The code above `main()` is an ordinary LangChain agent without any tracing code. Its model is a script, so that the
example needs no API key and gives the same answer every time. To use a real chat model, replace `LocalPlanner`; nothing
else changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from mlflow_otlp_exporter import configure

QUESTION = "I go from Lyon to Paris tomorrow, with my bicycle. Which train is it, and do I need a raincoat?"
INSTRUCTIONS = "You are a travel agent. Look things up before you answer. Three sentences are enough."

RULES = [
    Document(id="r1", page_content="A folded bicycle in a bag is luggage and free.", metadata={"page": 12}),
    Document(id="r2", page_content="A bicycle on wheels needs a ticket of 10 euro.", metadata={"page": 13}),
    Document(id="r3", page_content="Small pets travel in a basket under the seat.", metadata={"page": 15}),
    Document(id="r4", page_content="Seats can be changed until six days before.", metadata={"page": 21}),
]


@tool
def get_weather(city: str) -> dict[str, Any]:
    """Tomorrow's weather in a city."""
    return {"city": city, "sky": "rain", "celsius": 11}


@tool
def find_trains(origin: str, destination: str) -> list[dict[str, Any]]:
    """Tomorrow's trains from one city to another."""
    return [
        {"train": "TGV 6604", "leaves": f"{origin} 08:04", "arrives": f"{destination} 10:02", "bicycles": 0},
        {"train": "TGV 6608", "leaves": f"{origin} 10:04", "arrives": f"{destination} 12:06", "bicycles": 4},
    ]


class RuleBook(BaseRetriever):
    """Find the rules that share the most words with a query. A real app would use a vector store."""

    limit: int = 2

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        words = set(query.lower().split())
        ranked = sorted(RULES, key=lambda rule: -len(words.intersection(rule.page_content.lower().split())))
        return ranked[: self.limit]


@tool
def search_rules(query: str) -> str:
    """Search the railway's rules for travellers."""
    return "\n".join(rule.page_content for rule in RuleBook().invoke(query))


class LocalPlanner(BaseChatModel):
    """A scripted chat model: looks up trains and weather, then the rules, then answers from the results."""

    model_name: str = "local-planner-1"

    @property
    def _llm_type(self) -> str:
        return "local-planner"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Pass the available tools to the model."""
        # The script does not read the tools, but the trace shows the input of a real model.
        return self.bind(tools=[convert_to_openai_tool(available_tool) for available_tool in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        text, calls = self._next_step(messages)
        # A token is about four characters. A real model returns its own counts. MLflow adds up the counts of the spans.
        read = sum(len(str(message.content)) for message in messages) // 4
        wrote = len(text + "".join(str(call["args"]) for call in calls)) // 4
        reply = AIMessage(
            content=text,
            tool_calls=calls,
            usage_metadata=UsageMetadata(
                input_tokens=read,
                output_tokens=wrote,
                total_tokens=read + wrote,
                input_token_details={},
                output_token_details={},
            ),
            response_metadata={"model_name": self.model_name},
        )
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _next_step(self, messages: list[BaseMessage]) -> tuple[str, list[ToolCall]]:
        question = next(str(message.content) for message in messages if isinstance(message, HumanMessage))
        results = {message.name: str(message.content) for message in messages if isinstance(message, ToolMessage)}
        if "find_trains" not in results:
            route = re.search(r"from (\w+) to (\w+)", question)
            origin, city = route.groups() if route else ("Lyon", "Paris")
            return "First the trains and the weather, then what the railway says about bicycles.", [
                ToolCall(
                    name="find_trains", args={"origin": origin, "destination": city}, id="call_1", type="tool_call"
                ),
                ToolCall(name="get_weather", args={"city": city}, id="call_2", type="tool_call"),
            ]
        if "search_rules" not in results:
            return "", [
                ToolCall(name="search_rules", args={"query": "ticket for a bicycle"}, id="call_3", type="tool_call")
            ]
        train = next(train for train in json.loads(results["find_trains"]) if train["bicycles"])
        weather = json.loads(results["get_weather"])
        return (
            f"Take {train['train']} ({train['leaves']}, {train['arrives']}), which has room for bicycles. "
            f"{results['search_rules'].splitlines()[0]} "
            f"Expect {weather['sky']} in {weather['city']} at {weather['celsius']} degrees: pack a raincoat."
        ), []


def answer(question: str) -> str:
    """Answer a traveller's question.

    Args:
        question: The question, such as `QUESTION`.

    Returns:
        The final answer of the agent.
    """
    tools = [get_weather, find_trains, search_rules]
    agent = create_agent(LocalPlanner(), tools, system_prompt=INSTRUCTIONS, name="travel-agent")
    state = agent.invoke({"messages": [HumanMessage(question)]})
    return str(state["messages"][-1].content)


def main() -> None:
    """Ask one question and print the address of its trace."""
    telemetry = configure(experiment="quickstart")  # to MLFLOW_TRACKING_URI, default http://localhost:5000

    print(f"Question  {QUESTION}")
    print(f"Answer    {answer(QUESTION)}")

    telemetry.flush()  # spans are sent in the background; wait for them before the script ends
    print(f"Trace     {telemetry.trace_url()}")


if __name__ == "__main__":
    main()
