"""Parsing of `input.value` and `output.value`: providers' requests and responses, and the state of agents."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import (
    is_role_and_text,
    merge_messages,
    read_messages,
    read_system_message,
)
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, Part, has_content
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured

# LangChain's types of messages, instead of a role.
_LANGCHAIN_TYPES = frozenset(
    {"human", "ai", "system", "tool", "function", "message"}
    | {"HumanMessage", "AIMessage", "AIMessageChunk", "SystemMessage", "ToolMessage"}
)
_RESPONSES_ITEM_TYPES = frozenset({"function_call", "function_call_output", "reasoning"})
# Keys of a question, and of an answer, beside which other fields may stand; the surest first.
_QUESTION_KEYS = (
    *("question", "query", "user_query", "user_message", "user_msg", "user_input", "query_str", "prompt"),
    *("message", "input", "task", "resume"),
)
_ANSWER_KEYS = ("answer", "final_answer", "response", "reply", "output_text", "output", "result")
# Keys that count only if the value holds nothing else.
_SINGLE_QUESTION_KEYS = frozenset({*_QUESTION_KEYS, "inputs", "text", "content", "request"})
_SINGLE_ANSWER_KEYS = frozenset({*_ANSWER_KEYS, "message", "content", "raw"})
# Keys of an object around a question (a request of a web application, for example) or an answer.
_REQUEST_WRAPPERS = ("request", "input", "inputs", "body", "payload")
_WRAPPERS = (*_REQUEST_WRAPPERS, "answer", "response", "output", "result")
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_MAX_WRAPPERS = 3
_MESSAGE_KEYS = ("messages", "choices")
# JSON text without any of these holds no messages, and need not be parsed.
_REQUEST_MARKS = ('"messages"', '"role"', '"contents"', '"prompt', '"input"', '"type"', '"_role"')
_ANSWER_MARKS = (
    *('"choices"', '"messages"', '"role"', '"generations"'),
    *('"candidates"', '"output"', '"type"', '"replies"', '"toolCalls"'),
)


def _has_mark(text: str, marks: Sequence[str]) -> bool:
    return text.lstrip()[:1] in ("{", "[") and any(mark in text for mark in marks)


def read_request(value: Any, *, is_model: bool) -> tuple[Message, ...] | None:
    """The messages of a request to a provider, or of an agent's input: JSON text or structured.

    `is_model` tells that a model received the request, so that a prompt without a role is the user's. None if no
    message has content.
    """
    if isinstance(value, str) and not _has_mark(value, _REQUEST_MARKS):
        return None
    return read_decoded_request(parse_structured(value), is_model=is_model)


def read_decoded_request(value: Any, *, is_model: bool) -> tuple[Message, ...] | None:
    messages = _read_request(simplify_call(value), is_model=is_model)
    return messages if messages and has_content(messages) else None


def _read_request(request: Any, *, is_model: bool) -> tuple[Message, ...] | None:
    if isinstance(request, list):
        return read_messages(request) if is_message_list(request) else None
    if not isinstance(request, dict):
        return None
    for key in ("messages", "contents", "input", "chat_history"):
        items = request.get(key)
        if isinstance(items, list) and is_message_list(items):
            messages = read_messages(items) or ()
            if key == "chat_history" and (question := read_question({**request, key: None})) is not None:
                messages = (*messages, Message("user", (Part("text", question),)))
            return add_system_message(request, messages) or None
    if not is_model:
        nested = next((request[name] for name in _REQUEST_WRAPPERS if isinstance(request.get(name), dict)), None)
        return _read_request(simplify_call(nested), is_model=False)
    prompt = request.get("input") if isinstance(request.get("input"), str) else request.get("prompt")
    if isinstance(prompt, str):
        return add_system_message(request, (Message("user", (Part("text", prompt),)),))
    prompts = request.get("prompts")
    if isinstance(prompts, list) and prompts and all(isinstance(prompt_text, str) for prompt_text in prompts):
        return tuple(Message("user", (Part("text", prompt_text),)) for prompt_text in prompts)
    return None


def add_system_message(request: Any, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Add the instructions that stand beside messages, unless a message holds some."""
    if not isinstance(request, dict) or any(message.role == "system" for message in messages):
        return messages
    config = request.get("config")
    holders = (request, config) if isinstance(config, dict) else (request,)
    for holder in holders:
        for key in ("system", "instructions", "system_instruction", "systemInstruction"):
            value = holder.get(key)
            if isinstance(value, dict):
                value = value.get("parts")
            if value and (message := read_system_message(value)) is not None:
                return (message, *messages)
    return messages


def is_message_list(items: list[Any]) -> bool:
    """Whether a list holds messages, and not documents, tool calls or other typed objects."""
    members = [item for item in items[:50] if isinstance(item, (list, dict))]
    return bool(members) and all(
        _is_message(item) if isinstance(item, dict) else is_message_list(item) or is_role_and_text(item)
        for item in members
    )


def _is_message(item: Mapping[str, Any]) -> bool:
    if isinstance(item.get("role") or item.get("_role"), str):
        return True
    kind = item.get("type") if isinstance(item.get("type"), str) else None
    if kind == "constructor":
        class_path = item.get("id")
        name = str(class_path[-1]) if isinstance(class_path, list) and class_path else ""
        return name.endswith(("Message", "MessageChunk"))
    if kind in _RESPONSES_ITEM_TYPES:
        return True
    if kind in _LANGCHAIN_TYPES:
        return "content" in item or isinstance(item.get("data"), dict)
    return item.get("kind") in ("request", "response") and isinstance(item.get("parts"), list)


def read_response(value: Any, *, is_model: bool) -> tuple[Message, ...] | None:
    """The messages of a provider's response, or of an agent's output: JSON text or structured.

    If `is_model` is false, only the final answer is taken from an agent's state. None if no message has content.
    """
    if isinstance(value, str) and not _has_mark(value, _ANSWER_MARKS):
        return None
    return read_decoded_response(parse_structured(value), is_model=is_model)


def read_decoded_response(value: Any, *, is_model: bool) -> tuple[Message, ...] | None:
    messages = _read_response(value, is_model=is_model)
    return messages if messages and has_content(messages) else None


def _read_response(response: Any, *, is_model: bool) -> tuple[Message, ...] | None:
    if isinstance(response, list):
        if is_message_list(response):
            return _select_answer(read_messages(response, "assistant"), is_model=is_model)
        last = response[-1] if response else None
        response = {"update": last.get("update")} if isinstance(last, dict) else None  # LangGraph's commands
    if not isinstance(response, dict):
        return None
    for key in ("choices", "candidates", "generations", "replies"):
        candidates = response.get(key)
        if isinstance(candidates, list):
            return _read_candidates(candidates)
    output = response.get("output")
    if isinstance(output, dict) and isinstance(output.get("message"), dict):  # Bedrock converse
        return read_messages([output["message"]], "assistant")
    if isinstance(output, list) and is_message_list(output):
        return _select_answer(read_messages(output, "assistant"), is_model=is_model)
    if isinstance(calls := response.get("toolCalls"), list) and isinstance(response.get("text"), str):  # Mastra
        return read_messages([{"role": "assistant", "content": response["text"], "tool_calls": calls}])
    if isinstance(message := response.get("message"), dict) and _is_message(message):  # Genkit, Ollama
        return _select_answer(read_messages([message], "assistant"), is_model=is_model)
    for key in ("messages", "update"):
        nested = response.get(key)
        if isinstance(nested, dict):
            return _read_response(nested, is_model=is_model)
        if isinstance(nested, list) and is_message_list(nested):
            messages = read_messages(nested, "assistant")
            return _select_answer(messages, is_model=False) or _select_step_output(messages)
    if isinstance(response.get("content"), dict):  # Google ADK
        return _read_candidates([response])
    if _is_message(response):
        return _select_answer(read_messages([response], "assistant"), is_model=is_model)
    return None


def _read_candidates(candidates: list[Any]) -> tuple[Message, ...] | None:
    """Several choices stay several messages."""
    messages: list[Message] = []
    for candidate in candidates:
        if isinstance(candidate, list):
            messages += _read_candidates(candidate) or ()
            continue
        item = candidate if isinstance(candidate, dict) else {"text": candidate}
        content = item.get("message") or item.get("delta") or item.get("content")
        if isinstance(content, dict):
            messages += read_messages([content], "assistant") or ()
        elif isinstance(item.get("text"), str):
            messages.append(Message("assistant", (Part("text", item["text"]),)))
        elif _is_message(item):
            messages += read_messages([item], "assistant") or ()
    return tuple(message._replace(role="assistant") for message in messages) or None


def _select_answer(messages: tuple[Message, ...] | None, *, is_model: bool) -> tuple[Message, ...] | None:
    """All messages of a model, merged; the last answer in an agent's state."""
    if not messages:
        return None
    if is_model:
        return merge_messages(messages)
    for message in reversed(messages):
        if message.role == "assistant" and message.text:
            return (message,)
    return None


def _select_step_output(messages: tuple[Message, ...] | None) -> tuple[Message, ...] | None:
    """The end of a step without an answer: tool calls, or the results of tools."""
    if not messages:
        return None
    if messages[-1].tool_calls:
        return messages[-1:]
    results = tuple(takewhile(lambda message: message.role == "tool", reversed(messages)))
    return results[::-1] or None


# Where a response, or the result of a framework around it, holds more objects that describe it.
_FACT_HOLDERS = (
    *("choices", "candidates", "generations", "replies", "message", "kwargs", "generation_info", "response_metadata"),
    *("llm_output", "meta", "_meta", "raw", "response"),
)
# Names of facts, by the field of the normalized span that holds them.
_FACTS = {
    "usage": ("usage", "usage_metadata", "usageMetadata", "token_usage"),
    "response_model": ("model", "model_name", "modelVersion", "model_version", "modelId"),
    "finish_reason": ("finish_reason", "stop_reason", "finishReason", "stopReason"),
    "response_id": ("id", "responseId", "response_id"),
}


def read_facts(response: Any) -> dict[str, Any]:
    """What a provider's response says about itself: usage as an object, model, finish reason, id."""
    facts: dict[str, Any] = {}
    nodes = [response]
    for _ in range(6):  # LangChain's result is the deepest
        nodes = [node for item in nodes for node in (item[:1] if isinstance(item, list) else (item,))]
        nodes = [node[0] if isinstance(node, list) and node else node for node in nodes]
        objects = [node for node in nodes if isinstance(node, dict)]
        for node in objects:
            has_model = any(isinstance(node.get(name), str) for name in _FACTS["response_model"])
            for field, names in _FACTS.items():
                for name in names:
                    value = node.get(name)
                    is_fact = isinstance(value, dict) if field == "usage" else isinstance(value, str) and value
                    if is_fact and (field != "response_id" or has_model):
                        facts.setdefault(field, value)
        nodes = [node[key] for node in objects for key in _FACT_HOLDERS if key in node]
    return facts


def read_question(value: Any) -> str | None:
    """The question in the input of an agent or chain: the whole input, a field of it, or the only text argument."""
    parsed = parse_structured(value)
    call = simplify_call(parsed)
    if isinstance(call, list):
        texts = [item for item in call if isinstance(item, str)]
        return texts[0] if len(texts) == 1 else None
    return _read_text(value if parsed is None else call, _QUESTION_KEYS, _SINGLE_QUESTION_KEYS)


def read_answer(value: Any, *, is_conversation: bool = True) -> str | None:
    """The answer in the output of an agent or chain.

    If the input was no question (`is_conversation`), a single `text` is a field like any other.
    """
    parsed = parse_structured(value)
    keys = _SINGLE_ANSWER_KEYS | {"text"} if is_conversation else _SINGLE_ANSWER_KEYS
    return _read_text(value if parsed is None else parsed, _ANSWER_KEYS, keys)


def _read_text(value: Any, keys: Sequence[str], single_keys: frozenset[str], depth: int = 0) -> str | None:
    if isinstance(value, str):
        return value if value.strip() and not is_empty(value) else None
    if not isinstance(value, dict) or depth > _MAX_WRAPPERS:
        return None
    fields = {key: item for key, item in value.items() if item not in _EMPTY}
    if len(fields) == 1:
        key, item = next(iter(fields.items()))
        if isinstance(item, dict):
            return _read_text(item, keys, frozenset(keys), depth + 1)
        return item if key in single_keys and isinstance(item, str) and item.strip() else None
    for key in keys:
        if isinstance(item := fields.get(key), str) and item.strip():
            return item
    wrapped = next((fields[key] for key in _WRAPPERS if isinstance(fields.get(key), dict)), None)
    return _read_text(wrapped, keys, frozenset(keys), depth + 1)


def read_other_fields(value: Any, text: str) -> dict[str, Any]:
    """The fields of an input or output beside its question or answer, at the top level."""
    fields = simplify_call(parse_structured(value))
    if not isinstance(fields, dict) or text not in fields.values():
        return {}
    return {
        key: item for key, item in fields.items() if item != text and item not in _EMPTY and key not in _MESSAGE_KEYS
    }


def is_empty(value: Any) -> bool:
    """Whether an input or output holds nothing, as a value or as JSON text."""
    return value in (*_EMPTY, "{}", "[]", "null", '""') or value == {"args": [], "kwargs": {}}


def simplify_call(value: Any) -> Any:
    """A value without the envelope of a framework: the arguments of a call, and LangGraph's command."""
    if not isinstance(value, dict) or not value:
        return value
    if value.keys() <= {"args", "kwargs"}:
        args, kwargs = value.get("args") or [], value.get("kwargs") or {}
        if isinstance(args, list) and isinstance(kwargs, dict) and not (args and kwargs):
            return kwargs if not args else args[0] if len(args) == 1 else args
    elif "resume" in value and value.keys() <= {"graph", "update", "resume", "goto"}:
        return {key: item for key, item in value.items() if item not in _EMPTY}
    return value


def find_last_text(messages: tuple[Message, ...] | None, role: str) -> str | None:
    for message in reversed(messages or ()):
        if message.role == role and message.text:
            return message.text
    return None
