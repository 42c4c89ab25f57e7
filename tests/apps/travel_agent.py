"""An agent without tracing code whose traces use every feature of MLflow's console.

The agent gets a picture, searches documents, calls tools, of which one fails, and answers twice in a chat. Its model
returns scripted replies under a real model's name, so that MLflow can compute costs.
"""

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_tool_call
from langchain.tools import tool
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

SYSTEM = "You are a travel agent. Look things up before you answer."
QUESTIONS = ("This is my bicycle. Can it come along from Lyon to Paris?", "And what is the weather there?")
ANSWERS = (
    "Yes: a bicycle on wheels travels with a ticket of 10 euro. No seat could be booked, the train is full.",
    "Rain at 11 degrees: pack a raincoat.",
)
RULES = ("A bicycle on wheels needs a ticket of 10 euro.", "A folded bicycle in a bag is luggage and free.")
MODEL, INPUT, OUTPUT = "gpt-4o-mini", 1000, 200
FAILURE = "TGV 6608 is full"


def _create_picture() -> str:
    """A small orange PNG as a data URL."""

    def build_chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\x00" + b"\xff\x8c\x00" * 96) * 64
    head = struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 0)
    chunks = build_chunk(b"IHDR", head) + build_chunk(b"IDAT", zlib.compress(rows)) + build_chunk(b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + chunks
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class RuleBook(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(id=f"r{n}", page_content=text, metadata={"page": n}) for n, text in enumerate(RULES, 1)]


@tool
def search_rules(query: str) -> str:
    """Search the railway's rules for travellers."""
    return "\n".join(document.page_content for document in RuleBook().invoke(query))


@tool
def book_seat(train: str) -> str:
    """Book a seat."""
    raise ValueError(FAILURE if "6608" in train else train)


@tool
def get_weather(city: str) -> dict[str, Any]:
    """Tomorrow's weather in a city."""
    return {"city": city, "sky": "rain", "celsius": 11}


@wrap_tool_call
def return_error(request: Any, handler: Callable[[Any], Any]) -> Any:
    """Return the error of a failed tool to the model."""
    try:
        return handler(request)
    except ValueError as error:
        return ToolMessage(f"failed: {error}", tool_call_id=request.tool_call["id"], status="error")


class Model(BaseChatModel):
    """A chat model that returns scripted replies in order."""

    replies: list[AIMessage] = []  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "openai-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return {**super()._get_ls_params(stop, **kwargs), "ls_provider": "openai", "ls_model_name": MODEL}

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        reply = self.replies.pop(0)
        reply.usage_metadata = UsageMetadata(
            input_tokens=INPUT,
            output_tokens=OUTPUT,
            total_tokens=INPUT + OUTPUT,
            input_token_details={},
            output_token_details={},
        )
        reply.response_metadata = {"model_name": MODEL}
        return ChatResult(generations=[ChatGeneration(message=reply)])


def run_chat() -> list[str]:
    """Run both turns of the chat and return the agent's answers."""
    calls = [
        ToolCall(name="search_rules", args={"query": "bicycle"}, id="call_1", type="tool_call"),
        ToolCall(name="book_seat", args={"train": "TGV 6608"}, id="call_2", type="tool_call"),
    ]
    weather = ToolCall(name="get_weather", args={"city": "Paris"}, id="call_3", type="tool_call")
    replies = [AIMessage("", tool_calls=calls), AIMessage(ANSWERS[0])]
    replies += [AIMessage("", tool_calls=[weather]), AIMessage(ANSWERS[1])]
    model = Model(replies=replies)
    agent = create_agent(
        model,
        [search_rules, book_seat, get_weather],
        system_prompt=SYSTEM,
        middleware=[return_error],
        name="travel-agent",
    )
    picture = {"type": "image_url", "image_url": {"url": _create_picture()}}
    question = HumanMessage([{"type": "text", "text": QUESTIONS[0]}, picture])
    first = agent.invoke({"messages": [question]})["messages"]
    second = agent.invoke({"messages": [*first, HumanMessage(QUESTIONS[1])]})["messages"]
    return [str(first[-1].content), str(second[-1].content)]
