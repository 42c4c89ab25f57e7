"""Messages of any shape to the one of the normal form.

The shapes tell themselves apart, so one tolerant reader serves all conventions: OpenAI chat and Responses, OTel GenAI
parts, Anthropic blocks, Gemini, Bedrock and Strands, LangChain's three dumps, Vercel AI, LlamaIndex, Haystack,
pydantic-ai, and OpenInference's flattened attributes after they were unflattened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.media import read_media
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, Part, ToolCall
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured, select_text, to_json, to_text

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "humanmessage": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "aimessage": "assistant",
    "aimessagechunk": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "tool-call": "assistant",
    "tool": "tool",
    "toolmessage": "tool",
    "function": "tool",
    "functionmessage": "tool",
    "ipython": "tool",
    "tool-response": "user",
    "systemmessage": "system",
}
# What a model writes for itself, by the conventions' names.
_REASONING_TYPES = frozenset({"reasoning", "thinking", "redacted_thinking", "reasoning_content"})
_WRAPPERS = ("message", "data", "kwargs")
_MAX_ITEMS = 2000


class _MessageDraft:
    """A message while its pieces are looked at; results of tools become messages of their own."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.calls: list[ToolCall] = []
        self.thoughts: list[str] = []
        self.results: list[Message] = []

    def say(self, value: Any) -> None:
        """Adds text."""
        if value is not None and value != "":
            self.parts.append(Part("text", to_text(value)))

    def think(self, value: Any) -> None:
        """Adds reasoning."""
        if isinstance(value, str) and value:
            self.thoughts.append(value)

    def call(self, identity: Any, name: Any, arguments: Any) -> None:
        """Adds a tool call."""
        if isinstance(name, str) and name:
            given = "{}" if arguments is None or arguments == "" else to_text(arguments)
            self.calls.append(ToolCall(to_text(identity) if identity else "", name, given))

    def result(self, identity: Any, value: Any, name: Any = "") -> None:
        """Adds what a tool returned."""
        said = to_result_text(value)
        parts = (Part("text", said),) if said else ()
        named = name if isinstance(name, str) else ""
        self.results.append(Message("tool", parts, (), to_text(identity) if identity else "", named))


def normalize_role(value: Any, otherwise: str = "user") -> str:
    """A role as MLflow's console takes it; anything unknown is `otherwise`."""
    if not isinstance(value, str):
        return otherwise
    return _ROLES.get(value) or _ROLES.get(value.rpartition(".")[2].strip().lower(), otherwise)


def read_messages(value: Any, otherwise: str = "user") -> tuple[Message, ...] | None:
    """Messages out of whatever holds them; None if there are none.

    Args:
        value: A list of messages, a list of such lists, an object with `messages`, a single message, or text; as JSON
            text or structured.
        otherwise: The role of what names none.
    """
    found = parse_structured(value) if not isinstance(value, (list, dict)) else value
    if found is None:
        return (Message(otherwise, (Part("text", value),)),) if isinstance(value, str) and value.strip() else None
    if isinstance(found, dict):
        inner = found.get("messages")
        found = inner if isinstance(inner, (list, tuple)) else [found]
    messages: list[Message] = []
    for item in found[:_MAX_ITEMS]:
        if isinstance(item, list):
            messages += read_messages(item, otherwise) or ()
            continue
        if isinstance(item, str):
            item = parse_structured(item)  # noqa: PLW2901 - a repr, as LlamaIndex writes, is no message
        if isinstance(item, dict):
            messages += _read_message(item, otherwise)
    return merge_messages(messages) or None


def merge_messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Messages with the pieces of one answer put together.

    OpenAI's Responses give each tool call, and the reasoning before it, as an item of its own; a model that calls a
    tool says nothing more until the result is there, so that calls which follow each other are of one message.
    """
    result: list[Message] = []
    for message in messages:
        last = result[-1] if result else None
        if (
            last is not None
            and message.role == last.role == "assistant"
            and (message.tool_calls or not (last.parts or last.tool_calls))
        ):
            reasoning = "\n".join(filter(None, (last.reasoning, message.reasoning)))
            result[-1] = last._replace(
                parts=last.parts + message.parts,
                tool_calls=last.tool_calls + message.tool_calls,
                reasoning=reasoning,
                name=last.name or message.name,
            )
        else:
            result.append(message)
    return tuple(result)


def _read_message(item: dict[str, Any], otherwise: str) -> list[Message]:
    """The messages that one object stands for: one, and one for each tool result in it."""
    role = item.get("role") or item.get("_role")
    kind = item.get("type") or item.get("kind")
    for wrapper in _WRAPPERS:
        inner = item.get(wrapper)
        if isinstance(inner, dict) and role is None and "content" not in item:
            # OpenInference's `message`, LangChain's {"type": "human", "data": ..} and {"lc": 1, .., "kwargs": ..}.
            named = item.get("id")
            known = kind if kind != "constructor" else (named[-1] if isinstance(named, list) and named else None)
            return _read_message({"type": known, **inner}, otherwise)
    draft = _MessageDraft()
    if role is None and isinstance(kind, str) and _read_responses_item(kind, item, draft):
        return _build_messages(draft, "assistant", item)
    settled = normalize_role(role if role is not None else kind, _default_role(kind, otherwise))
    content = item.get("contents")  # OpenInference repeats a lone text in `content`
    if content is None:
        content = item.get("content", item.get("_content"))
    if content is None:
        content = item.get("parts", item.get("blocks"))
        if content is None and "message" in item and not isinstance(item["message"], dict):
            content = item["message"]  # the text of a choice event
    if settled == "tool":
        identity = select_text(item.get("tool_call_id"), item.get("id"), item.get("call_id"))
        if not _read_tool_results(content, draft):
            draft.result(identity, content, item.get("name"))
        return draft.results
    _read_content(content, draft)
    _read_tool_calls(item, draft)
    for key in ("reasoning_content", "reasoning"):
        draft.think(item.get(key))
    return _build_messages(draft, settled, item)


def _default_role(kind: Any, otherwise: str) -> str:
    if kind == "response":  # pydantic-ai's messages are requests and responses
        return "assistant"
    return "user" if kind == "request" else otherwise


def _build_messages(draft: _MessageDraft, role: str, item: Mapping[str, Any]) -> list[Message]:
    name = item.get("name")
    if draft.calls and role == "user":
        role = "assistant"
    message = Message(
        role,
        tuple(draft.parts),
        tuple(draft.calls),
        "",
        name if isinstance(name, str) and item.get("type") != "function_call" else "",
        "\n".join(draft.thoughts),
    )
    if draft.results and not (message.parts or message.tool_calls or message.reasoning):
        return draft.results
    # What a user says beside a tool's result was said after it; a model's calls come before their results.
    return [message, *draft.results] if role == "assistant" else [*draft.results, message]


def _read_responses_item(kind: str, item: Mapping[str, Any], draft: _MessageDraft) -> bool:
    """Items of OpenAI's Responses that are no messages; False if it is none."""
    if kind in ("function_call", "custom_tool_call", "mcp_call"):
        draft.call(item.get("call_id") or item.get("id"), item.get("name"), item.get("arguments", item.get("input")))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        draft.result(item.get("call_id"), item.get("output"))
    elif kind == "reasoning":
        for summary in item.get("summary") or item.get("content") or ():
            draft.think(summary.get("text") if isinstance(summary, dict) else summary)
    else:
        return False
    return True


def _read_tool_calls(item: Mapping[str, Any], draft: _MessageDraft) -> None:
    """Tool calls that stand beside the content: OpenAI, LangChain, LlamaIndex, OpenInference."""
    found = (
        parse_structured(item.get("tool_calls")) if isinstance(item.get("tool_calls"), str) else item.get("tool_calls")
    )
    extra = item.get("additional_kwargs")
    if not found and isinstance(extra, dict):
        found = extra.get("tool_calls")
    seen = {call.id for call in draft.calls if call.id}
    for each in found if isinstance(found, (list, tuple)) else ():
        if not isinstance(each, dict):
            continue
        call: dict[str, Any] = each["tool_call"] if isinstance(each.get("tool_call"), dict) else each
        function: dict[str, Any] = call["function"] if isinstance(call.get("function"), dict) else call
        arguments = function.get("arguments", function.get("args", function.get("input")))
        identity = call.get("id") or call.get("tool_call_id") or call.get("toolCallId")
        if identity not in seen:
            draft.call(identity, function.get("name") or call.get("tool_name") or call.get("toolName"), arguments)
    single = item.get("function_call")
    if isinstance(single, dict) and not draft.calls:
        draft.call("", single.get("name"), single.get("arguments"))


def _read_content(content: Any, draft: _MessageDraft) -> None:
    if isinstance(content, str):
        nested = parse_structured(content) if content.lstrip()[:2] in ("[{", "[ ") else None
        if not isinstance(nested, list) or not _is_part_list(nested):
            draft.say(content)
            return
        content = nested  # parts as JSON text: OpenLLMetry's prompts, Strands' events
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, (list, tuple)):
        draft.say(content)
        return
    for part in content[:_MAX_ITEMS]:
        if isinstance(part, dict):
            _read_part(part, draft)
        else:
            draft.say(part)


def _is_part_list(items: list[Any]) -> bool:
    marks = {"type", "text", "toolUse", "toolResult", "part_kind", "reasoningContent"}
    return all(isinstance(item, dict) and not marks.isdisjoint(item) for item in items)


def _read_part(part: dict[str, Any], draft: _MessageDraft) -> None:
    inner = part.get("message_content")
    if isinstance(inner, dict):
        part = {**part, **inner}
    kind = part.get("type") or part.get("part_kind") or part.get("block_type") or ""
    reader = _PART_READERS.get(kind)
    if reader is not None:
        reader(part, draft)
    elif kind in _REASONING_TYPES:
        draft.think(select_text(part.get("content"), part.get("text"), part.get("thinking"), part.get("reasoning")))
    elif (found := read_media(part, kind)) is not None:
        draft.parts.append(found)
    elif not _read_untyped_part(part, draft):
        draft.say(select_text(part.get("content"), part.get("text")) or to_json(part))


def _read_tool_call(part: Mapping[str, Any], draft: _MessageDraft) -> None:
    function = part.get("function")
    inner = function if isinstance(function, dict) else part
    arguments = inner.get("arguments", inner.get("args", inner.get("input")))
    identity = part.get("id") or part.get("tool_call_id") or part.get("toolCallId") or part.get("call_id")
    draft.call(identity, inner.get("name") or part.get("tool_name") or part.get("toolName"), arguments)


def _read_tool_use(part: Mapping[str, Any], draft: _MessageDraft) -> None:
    call = part.get("tool_call")  # OpenInference repeats each call among the message's tool_calls
    if not isinstance(call, dict):
        draft.call(part.get("id") or part.get("tool_call_id"), part.get("name"), part.get("input"))


def _read_tool_result(part: Mapping[str, Any], draft: _MessageDraft) -> None:
    identity = select_text(
        part.get("id"), part.get("tool_use_id"), part.get("tool_call_id"), part.get("toolCallId"), part.get("call_id")
    )
    for key in ("response", "result", "output", "content"):
        if key in part:
            value = part[key]
            if isinstance(value, dict) and set(value) <= {"type", "value"}:
                value = value.get("value")  # Vercel AI
            draft.result(identity, value, part.get("name") or part.get("tool_name") or part.get("toolName"))
            return
    draft.result(identity, None)


def _read_nested_content(part: Mapping[str, Any], draft: _MessageDraft) -> None:
    _read_content(part.get("content"), draft)


def _read_text(part: Mapping[str, Any], draft: _MessageDraft) -> None:
    draft.say(part.get("text", part.get("content")))


_PART_READERS: dict[Any, Callable[[dict[str, Any], _MessageDraft], None]] = {
    "text": _read_text,
    "input_text": _read_text,
    "output_text": _read_text,
    "text-delta": _read_text,
    "refusal": lambda part, draft: draft.say(part.get("refusal")),
    "tool_call": _read_tool_call,
    "tool-call": _read_tool_call,
    "function_call": _read_tool_call,
    "server_tool_use": _read_tool_use,
    "tool_use": _read_tool_use,
    "tool_call_response": _read_tool_result,
    "tool_result": _read_tool_result,
    "tool-result": _read_tool_result,
    "tool-return": _read_tool_result,
    "function_call_output": _read_tool_result,
    "user-prompt": _read_nested_content,
    "system-prompt": _read_nested_content,
    "retry-prompt": _read_nested_content,
}


def _read_untyped_part(part: dict[str, Any], draft: _MessageDraft) -> bool:
    """Parts that have no type but a telling key: Gemini, Bedrock, Strands, Haystack; False if it is none."""
    thought = part.get("reasoningContent")
    if isinstance(thought, dict):
        inner = thought.get("reasoningText")
        draft.think(inner.get("text") if isinstance(inner, dict) else inner)
    elif isinstance(use := part.get("toolUse"), dict):
        draft.call(use.get("toolUseId"), use.get("name"), use.get("input"))
    elif isinstance(result := part.get("toolResult"), dict):
        draft.result(result.get("toolUseId"), result.get("content"))
    elif isinstance(call := part.get("function_call", part.get("functionCall")), dict):
        draft.call(call.get("id"), call.get("name"), call.get("args"))
    elif isinstance(response := part.get("function_response", part.get("functionResponse")), dict):
        draft.result(response.get("id"), response.get("response"), response.get("name"))
    elif isinstance(call := part.get("tool_call"), dict):
        draft.call(call.get("id"), call.get("tool_name"), call.get("arguments"))
    elif isinstance(result := part.get("tool_call_result"), dict):
        origin = result.get("origin")
        draft.result(origin.get("id") if isinstance(origin, dict) else "", result.get("result"))
    elif isinstance(part.get("text"), str):
        (draft.think if part.get("thought") is True else draft.say)(part["text"])
    else:
        return False
    return True


def _read_tool_results(content: Any, draft: _MessageDraft) -> bool:
    """Results that name their calls inside a `tool` message; False if the content is the result itself."""
    if isinstance(content, str) and content.lstrip()[:2] == "[{":
        content = parse_structured(content)
    if not isinstance(content, list) or not content:
        return False
    marks = {"toolResult", "function_response", "functionResponse", "tool_call_result"}
    kinds = {"tool_call_response", "tool_result", "tool-result", "tool-return", "function_call_output"}
    for part in content:
        if not isinstance(part, dict) or not (part.get("type") in kinds or not marks.isdisjoint(part)):
            return False
    for part in content:
        _read_part(part, draft)
    return True


def to_result_text(value: Any) -> str:
    """What a tool returned, as text: the text of content blocks, else JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) for item in value):
        texts = [item.get("text", item.get("content")) for item in value if not item.keys() - _TEXT_BLOCK_KEYS]
        if len(texts) == len(value) and all(isinstance(item, str) for item in texts):
            return "\n".join(texts)
    return to_json(value)


_TEXT_BLOCK_KEYS = {"type", "text", "content", "annotations", "citations", "block_type"}


def read_system_message(value: Any) -> Message | None:
    """The message that system instructions make, given as text, or as parts in JSON or structured."""
    found = parse_structured(value)
    draft = _MessageDraft()
    _read_content(found if found is not None else value, draft)
    return Message("system", tuple(draft.parts)) if draft.parts else None
