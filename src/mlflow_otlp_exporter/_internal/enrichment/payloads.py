"""What stands in `input.value` and `output.value`: providers' requests and answers, and the state of agents."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import merge_messages, read_messages, read_system_message
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, Part
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured

# LangChain's names for who speaks, where another would have `role`.
_LANGCHAIN_TYPES = frozenset(
    {
        "human",
        "ai",
        "system",
        "tool",
        "function",
        "constructor",
        "message",
        "HumanMessage",
        "AIMessage",
        "AIMessageChunk",
        "SystemMessage",
        "ToolMessage",
    }
)
_RESPONSES_ITEM_TYPES = frozenset({"function_call", "function_call_output", "reasoning"})
# Agents' inputs with nothing but the question in them.
_QUESTION_KEYS = (
    "input",
    "question",
    "query",
    "prompt",
    "message",
    "text",
    "user_msg",
    "user_message",
    "user_input",
    "query_str",
    "task",
    "content",
    "inputs",
    "request",
)
_ANSWER_KEYS = (
    "output",
    "answer",
    "response",
    "result",
    "text",
    "message",
    "content",
    "final_answer",
    "output_text",
    "raw",
)
# One of these in a JSON text: without them it holds no messages, and need not be parsed.
_REQUEST_MARKS = ('"messages"', '"role"', '"contents"', '"prompt', '"input"', '"type"', '"_role"')
_ANSWER_MARKS = (
    '"choices"',
    '"messages"',
    '"role"',
    '"generations"',
    '"candidates"',
    '"output"',
    '"type"',
    '"replies"',
)


def read_request(value: Any, *, model: bool) -> tuple[Message, ...] | None:
    """The messages of a request; None if it holds none.

    Args:
        value: A request to a provider, or what an agent was given: JSON text or structured.
        model: Whether it went to a model, so that a prompt without a role is the user's.
    """
    if isinstance(value, str) and not any(mark in value for mark in _REQUEST_MARKS):
        return None
    found = parse_structured(value)
    if isinstance(found, list):
        return read_messages(found) if is_message_list(found) else None
    if not isinstance(found, dict):
        return None
    for key in ("messages", "contents", "input", "chat_history"):
        listed = found.get(key)
        if isinstance(listed, list) and is_message_list(listed):
            said = read_messages(listed) or ()
            return _add_system_message(found, said) or None
    if not model:
        inner = found.get("input") or found.get("inputs")
        return read_request(inner, model=False) if isinstance(inner, dict) else None
    prompt = found.get("input") if isinstance(found.get("input"), str) else found.get("prompt")
    if isinstance(prompt, str):
        return _add_system_message(found, (Message("user", (Part("text", prompt),)),))
    prompts = found.get("prompts")
    if isinstance(prompts, list) and prompts and all(isinstance(each, str) for each in prompts):
        return tuple(Message("user", (Part("text", each),)) for each in prompts)
    return None


def _add_system_message(found: Mapping[str, Any], said: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages with the instructions that stand beside them, unless one of them holds some."""
    if any(message.role == "system" for message in said):
        return said
    config = found.get("config")
    holders = (found, config) if isinstance(config, dict) else (found,)
    for holder in holders:
        for key in ("system", "instructions", "system_instruction", "systemInstruction"):
            value = holder.get(key)
            if isinstance(value, dict):
                value = value.get("parts")
            if value and (message := read_system_message(value)) is not None:
                return (message, *said)
    return said


def is_message_list(items: list[Any]) -> bool:
    """Whether a list holds messages, and not documents, tool calls or anything else that has a type."""
    seen = False
    for item in items[:50]:
        if isinstance(item, list):
            if not is_message_list(item):
                return False
        elif isinstance(item, dict):
            if not _is_message(item):
                return False
        else:
            continue
        seen = True
    return seen


def _is_message(item: Mapping[str, Any]) -> bool:
    if isinstance(item.get("role") or item.get("_role"), str):
        return True
    kind = item.get("type")
    if kind in _RESPONSES_ITEM_TYPES:
        return True
    if kind in _LANGCHAIN_TYPES:
        named = item.get("id")
        if kind == "constructor":
            return isinstance(named, list) and bool(named) and str(named[-1]).endswith(("Message", "MessageChunk"))
        return "content" in item or isinstance(item.get("data"), dict)
    return item.get("kind") in ("request", "response") and isinstance(item.get("parts"), list)


def read_response(value: Any, *, model: bool) -> tuple[Message, ...] | None:
    """The messages of an answer; None if it holds none.

    Args:
        value: A provider's answer, or what an agent returned: JSON text or structured.
        model: Whether it came from a model; of an agent's state only the final answer is taken.
    """
    if isinstance(value, str) and not any(mark in value for mark in _ANSWER_MARKS):
        return None
    found = parse_structured(value)
    if isinstance(found, list):
        return _read_response_list(found, model=model)
    if not isinstance(found, dict):
        return None
    choices = found.get("choices")
    if isinstance(choices, list):
        return _read_choices(choices)
    for key in ("candidates", "generations", "replies"):
        listed = found.get(key)
        if isinstance(listed, list):
            return _read_candidates(listed)
    output = found.get("output")
    if isinstance(output, dict) and isinstance(output.get("message"), dict):  # Bedrock converse
        return read_messages([output["message"]], "assistant")
    if isinstance(output, list) and is_message_list(output):
        return _select_answer(read_messages(output, "assistant"), model=model)
    for key in ("messages", "update"):
        inner = found.get(key)
        if isinstance(inner, dict):
            return read_response(inner, model=model)
        if isinstance(inner, list) and is_message_list(inner):
            said = read_messages(inner, "assistant")
            return _select_answer(said, model=False) or _select_step_output(said)
    if _is_message(found):
        return _select_answer(read_messages([found], "assistant"), model=model)
    return None


def _read_response_list(found: list[Any], *, model: bool) -> tuple[Message, ...] | None:
    if is_message_list(found):
        return _select_answer(read_messages(found, "assistant"), model=model)
    if found and isinstance(found[-1], dict) and isinstance(found[-1].get("update"), dict):  # LangGraph's commands
        return read_response(found[-1]["update"], model=False)
    return None


def _read_choices(choices: list[Any]) -> tuple[Message, ...] | None:
    """Several choices stay several messages."""
    said: list[Message] = []
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        message = choice.get("message") or choice.get("delta")
        if isinstance(message, dict):
            said += read_messages([{"role": "assistant", **message}], "assistant") or ()
        elif isinstance(choice.get("text"), str):
            said.append(Message("assistant", (Part("text", choice["text"]),)))
    return tuple(said) or None


def _read_candidates(listed: list[Any]) -> tuple[Message, ...] | None:
    said: list[Message] = []
    for item in listed:
        if isinstance(item, list):
            said += _read_candidates(item) or ()
        elif isinstance(item, str):
            said.append(Message("assistant", (Part("text", item),)))
        elif isinstance(item, dict):
            inner = item.get("message") or item.get("content")
            if isinstance(inner, dict):
                said += read_messages([inner], "assistant") or ()
            elif isinstance(item.get("text"), str):
                said.append(Message("assistant", (Part("text", item["text"]),)))
            else:
                said += read_messages([item], "assistant") or ()
    return tuple(message._replace(role="assistant") for message in said) or None


def _select_answer(messages: tuple[Message, ...] | None, *, model: bool) -> tuple[Message, ...] | None:
    """A model's answer as it is; of an agent's state the last answer."""
    if not messages:
        return None
    if model:
        return merge_messages(messages)
    for message in reversed(messages):
        if message.role == "assistant" and message.text:
            return (message,)
    return None


def _select_step_output(messages: tuple[Message, ...] | None) -> tuple[Message, ...] | None:
    """What a step added that comes before any answer: calls of tools, or their results."""
    if not messages:
        return None
    if messages[-1].tool_calls:
        return messages[-1:]
    results = tuple(takewhile(lambda message: message.role == "tool", reversed(messages)))
    return results[::-1] or None


def read_question(value: Any) -> str | None:
    """The words that an agent or chain was given, if its input is nothing but them."""
    return _read_only_text(value, _QUESTION_KEYS)


def read_answer(value: Any) -> str | None:
    """The words that an agent or chain returned, if its output is nothing but them."""
    return _read_only_text(value, _ANSWER_KEYS)


def _read_only_text(value: Any, keys: tuple[str, ...]) -> str | None:
    found = parse_structured(value)
    if found is None:
        return value if isinstance(value, str) and value.strip() else None
    if isinstance(found, dict):
        filled = {key: item for key, item in found.items() if item not in (None, "", [], {})}
        if len(filled) == 1:
            key, inner = next(iter(filled.items()))
            if key in keys and isinstance(inner, str):
                return inner
    return None


def find_last_user_text(messages: tuple[Message, ...] | None) -> str | None:
    """The user's last words."""
    for message in reversed(messages or ()):
        if message.role == "user" and message.text:
            return message.text
    return None


def find_final_text(messages: tuple[Message, ...] | None) -> str | None:
    """The assistant's last words."""
    for message in reversed(messages or ()):
        if message.role == "assistant" and message.text:
            return message.text
    return None
