"""Parsing of messages in any shape.

The shapes are distinguishable, so one tolerant parser serves all conventions: OpenAI chat and Responses, OTel GenAI
parts, Anthropic blocks, Gemini, Bedrock and Strands, LangChain's three serializations, Vercel AI, LlamaIndex, Haystack,
pydantic-ai, and OpenInference's unflattened attributes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, Part, ToolCall
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured, select_text, to_json, to_text

ROLES = {
    alias: role
    for role, aliases in {
        "system": ("system", "developer", "systemmessage"),
        "user": ("user", "human", "humanmessage", "tool-response"),
        "assistant": ("assistant", "ai", "aimessage", "aimessagechunk", "model", "bot", "chatbot", "tool-call"),
        "tool": ("tool", "toolmessage", "function", "functionmessage", "ipython"),
    }.items()
    for alias in aliases
}
_ROLES_IN_PAIRS = ("user", "human", "system", "assistant", "ai")
# Types of parts that hold an image, audio or a file, in any convention.
MEDIA_TYPES = frozenset(
    {"image", "image_url", "input_image", "image-url", "audio", "input_audio", "audio-url", "video", "video-url"}
    | {"file", "input_file", "document", "document-url", "blob", "uri", "binary", "media"}
)
# Types of parts that hold a model's reasoning.
_REASONING_TYPES = frozenset({"reasoning", "thinking", "redacted_thinking", "reasoning_content"})
_TOOL_RESULT_TYPES = ("tool_call_response", "tool_result", "tool-result", "tool-return", "function_call_output")
# Keys that hold a tool call, or the result of one, in Gemini, Bedrock, Strands, Genkit and Haystack.
_TOOL_CALL_KEYS = ("toolUse", "function_call", "functionCall", "toolRequest", "tool_call")
_TOOL_RESULT_KEYS = ("toolResult", "function_response", "functionResponse", "toolResponse", "tool_call_result")
# Names of the parts of a tool call and of its result, in order of precedence.
_CALL_ID_NAMES = ("call_id", "tool_call_id", "toolCallId", "toolUseId", "tool_use_id", "id", "ref")
_TOOL_NAMES = ("name", "tool_name", "toolName")
_ARGUMENT_NAMES = ("arguments", "args", "input", "tool_kwargs")
_RESULT_NAMES = ("response", "result", "output", "content")
# Keys of a message beside its content that may hold tool calls.
_CALL_HOLDERS = frozenset({"tool_calls", "additional_kwargs", "function_call", "function_call_name", "function"})
_TEXT_BLOCK_KEYS = {"type", "text", "content", "annotations", "citations", "block_type"}
_WRAPPERS = ("message", "data", "kwargs")
_MAX_ITEMS = 2000


class _MessageDraft:
    """A message under construction; tool results become messages of their own."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.tool_calls: list[ToolCall] = []
        self.reasoning: list[str] = []
        self.tool_results: list[Message] = []

    def add_text(self, value: Any) -> None:
        if value is not None and value != "":
            self.parts.append(Part("text", to_text(value)))

    def add_reasoning(self, value: Any) -> None:
        if isinstance(value, str) and value:
            self.reasoning.append(value)

    def add_tool_call(self, call_id: Any, name: Any, arguments: Any) -> None:
        if isinstance(name, str) and name:
            arguments_text = "{}" if arguments is None or arguments == "" else to_text(arguments)
            self.tool_calls.append(ToolCall(to_text(call_id) if call_id else "", name, arguments_text))

    def add_tool_result(self, call_id: Any, value: Any, name: Any = "") -> None:
        text = to_result_text(value)
        parts = (Part("text", text),) if text else ()
        tool_name = name if isinstance(name, str) else ""
        self.tool_results.append(Message("tool", parts, (), to_text(call_id) if call_id else "", tool_name))


def normalize_role(value: Any, default_role: str = "user") -> str:
    """The role as MLflow's console accepts it."""
    if not isinstance(value, str):
        return default_role
    return ROLES.get(value) or ROLES.get(value.rpartition(".")[2].strip().lower(), default_role)


def read_messages(value: Any, default_role: str = "user") -> tuple[Message, ...] | None:
    """The messages in a value; None if there are none.

    The value is a list of messages, a list of such lists, an object with `messages`, a single message, or text; as JSON
    text or structured. `default_role` is the role of messages that have none.
    """
    parsed = parse_structured(value) if not isinstance(value, (list, dict)) else value
    if parsed is None:
        return (Message(default_role, (Part("text", value),)),) if isinstance(value, str) and value.strip() else None
    if isinstance(parsed, dict):
        nested = parsed.get("messages")
        parsed = nested if isinstance(nested, (list, tuple)) else [parsed]
    messages: list[Message] = []
    for item in parsed[:_MAX_ITEMS]:
        if is_role_and_text(item):
            item = {"role": item[0], "content": item[1]}  # noqa: PLW2901 - as LangChain accepts messages
        elif isinstance(item, list):
            messages += read_messages(item, default_role) or ()
            continue
        if isinstance(item, str):
            item = parse_structured(item)  # noqa: PLW2901 - a repr, as LlamaIndex writes, is no message
        if isinstance(item, dict):
            messages += _read_message(item, default_role)
    return merge_messages(messages) or None


def is_role_and_text(item: Any) -> bool:
    """Whether an item is a message as a pair: `["user", "Hello"]`."""
    return isinstance(item, list) and len(item) == 2 and item[0] in _ROLES_IN_PAIRS and isinstance(item[1], str)


def merge_messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Merge the pieces of one answer into one message.

    OpenAI's Responses have an item for each tool call and for the reasoning before it. A model that calls a tool writes
    nothing more until the result arrives, so consecutive calls belong to one message.
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


def _read_message(item: dict[str, Any], default_role: str) -> list[Message]:
    """The messages that one object stands for: one, and one for each tool result in it."""
    role = item.get("role") or item.get("_role")
    kind = item.get("type") or item.get("kind")
    for wrapper in _WRAPPERS:
        nested = item.get(wrapper)
        if isinstance(nested, dict) and role is None and "content" not in item:
            # OpenInference's `message`, LangChain's {"type": "human", "data": ..} and {"lc": 1, .., "kwargs": ..}.
            class_path = item.get("id")
            if kind == "constructor":
                kind = class_path[-1] if isinstance(class_path, list) and class_path else None
            return _read_message({"type": kind, **nested}, default_role)
    draft = _MessageDraft()
    if role is None and isinstance(kind, str) and _read_responses_item(kind, item, draft):
        return _build_messages(draft, "assistant", item)
    if kind in ("request", "response"):  # pydantic-ai's messages
        default_role = "user" if kind == "request" else "assistant"
    final_role = normalize_role(role if role is not None else kind, default_role)
    content = item.get("contents")  # OpenInference repeats a single text in `content`
    if content is None:
        content = item.get("content", item.get("_content"))
    if content is None:
        content = item.get("parts", item.get("blocks"))
        if content is None and not isinstance(item.get("message"), dict):
            content = item.get("message", item.get("text") if role else None)  # choice events of GenAI have `message`
    if final_role == "tool":
        if not _read_tool_results(content, draft):
            draft.add_tool_result(_select(item, _CALL_ID_NAMES), content, item.get("name"))
        return draft.tool_results
    _read_content(content, draft)
    _read_tool_calls(item, draft)
    for key in ("reasoning_content", "reasoning"):
        draft.add_reasoning(item.get(key))
    return _build_messages(draft, final_role, item)


def _build_messages(draft: _MessageDraft, role: str, item: Mapping[str, Any]) -> list[Message]:
    sender = item.get("name")
    if draft.tool_calls and role == "user":
        role = "assistant"
    message = Message(
        role,
        tuple(draft.parts),
        tuple(draft.tool_calls),
        "",
        sender if isinstance(sender, str) and item.get("type") != "function_call" else "",
        "\n".join(draft.reasoning),
    )
    if draft.tool_results and not (message.parts or message.tool_calls or message.reasoning):
        return draft.tool_results
    # A user's text beside a tool's result comes after it; a model's calls come before their results.
    return [message, *draft.tool_results] if role == "assistant" else [*draft.tool_results, message]


def _read_responses_item(kind: str, item: Mapping[str, Any], draft: _MessageDraft) -> bool:
    """Read an item of OpenAI's Responses that is no message; False if it is another object."""
    if kind in ("function_call", "custom_tool_call", "mcp_call"):
        _read_tool_call(item, draft)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        _read_tool_result(item, draft)
    elif kind == "reasoning":
        for summary in item.get("summary") or item.get("content") or ():
            draft.add_reasoning(summary.get("text") if isinstance(summary, dict) else summary)
    else:
        return False
    return True


def _read_tool_calls(item: Mapping[str, Any], draft: _MessageDraft) -> None:
    """Read tool calls beside the content: OpenAI, LangChain, LlamaIndex, OpenInference."""
    if _CALL_HOLDERS.isdisjoint(item):
        return
    additional, single = item.get("additional_kwargs"), item.get("function_call")
    if "function_call_name" in item:  # OpenInference
        single = {"name": item["function_call_name"], "arguments": item.get("function_call_arguments_json")}
    nested = additional.get("tool_calls") if isinstance(additional, dict) else None
    beside = _MessageDraft()
    for value in (item.get("tool_calls"), nested, [single], item.get("function")):
        entries = parse_structured(value) if isinstance(value, str) else value
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if isinstance(entry, dict):
                _read_tool_call(entry, beside)
        if beside.tool_calls or draft.tool_calls:
            break
    known_ids = {call.id for call in draft.tool_calls if call.id}
    draft.tool_calls += [call for call in beside.tool_calls if call.id not in known_ids]


def _read_content(content: Any, draft: _MessageDraft) -> None:
    if isinstance(content, str):
        nested = parse_structured(content) if content.lstrip()[:2] in ("[{", "[ ") else None
        if not isinstance(nested, list) or not _is_part_list(nested):
            draft.add_text(content)
            return
        content = nested  # parts as JSON text: OpenLLMetry's prompts, Strands' events
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, (list, tuple)):
        draft.add_text(content)
        return
    for part in content[:_MAX_ITEMS]:
        if isinstance(part, dict):
            _read_part(part, draft)
        else:
            draft.add_text(part)


def _is_part_list(items: list[Any]) -> bool:
    part_keys = {"type", "text", "toolUse", "toolResult", "part_kind", "block_type", "reasoningContent"}
    return all(isinstance(item, dict) and not part_keys.isdisjoint(item) for item in items)


def _read_part(part: dict[str, Any], draft: _MessageDraft) -> None:
    message_content = part.get("message_content")
    if isinstance(message_content, dict):
        part = {**part, **message_content}
    kind = select_text(part.get("type"), part.get("part_kind"), part.get("block_type")) or ""
    reader = _PART_READERS.get(kind)
    if reader is not None:
        reader(part, draft)
    elif kind in _REASONING_TYPES:
        draft.add_reasoning(select_text(*map(part.get, ("content", "text", "thinking", "reasoning"))))
    elif (media := read_media(part, kind)) is not None:
        draft.parts.append(media)
    elif not _read_untyped_part(part, draft):
        draft.add_text(select_text(part.get("content"), part.get("text")) or to_json(part))


def _select(item: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if item.get(name) not in (None, "")), None)


def _read_tool_call(item: Mapping[str, Any], draft: _MessageDraft) -> None:
    nested = item.get("tool_call")
    call = nested if isinstance(nested, dict) else item
    function = call["function"] if isinstance(call.get("function"), dict) else call
    draft.add_tool_call(
        _select(call, _CALL_ID_NAMES), _select(function, _TOOL_NAMES), _select(function, _ARGUMENT_NAMES)
    )


def _read_tool_result(item: Mapping[str, Any], draft: _MessageDraft) -> None:
    origin = item.get("origin")  # the call, in Haystack
    value = _select(item, _RESULT_NAMES)
    if isinstance(value, dict) and set(value) <= {"type", "value"}:
        value = value.get("value")  # Vercel AI
    fields = {**origin, **item} if isinstance(origin, dict) else item
    draft.add_tool_result(_select(fields, _CALL_ID_NAMES), value, _select(fields, _TOOL_NAMES))


_PART_READERS: dict[Any, Callable[[dict[str, Any], _MessageDraft], None]] = {
    **dict.fromkeys(
        ("text", "input_text", "output_text", "text-delta"),
        lambda part, draft: draft.add_text(part.get("text", part.get("content"))),
    ),
    "refusal": lambda part, draft: draft.add_text(part.get("refusal")),
    **dict.fromkeys(("tool_call", "tool-call", "function_call", "server_tool_use", "tool_use"), _read_tool_call),
    **dict.fromkeys(_TOOL_RESULT_TYPES, _read_tool_result),
    **dict.fromkeys(
        ("user-prompt", "system-prompt", "retry-prompt"), lambda part, draft: _read_content(part.get("content"), draft)
    ),
}
_KEYED_PART_READERS = {
    **dict.fromkeys(_TOOL_CALL_KEYS, _read_tool_call),
    **dict.fromkeys(_TOOL_RESULT_KEYS, _read_tool_result),
}
_MIME_NAMES = ("mime_type", "media_type", "mediaType", "mimeType", "contentType")
_URL_NAMES = ("url", "uri", "image_url", "file_uri", "fileUri", "image", "file_url")
_DATA_NAMES = ("data", "content", "bytes", "base64", "file_data")
_FILE_NAMES = ("filename", "name", "title", "file_id")


def read_media(part: Mapping[str, Any], kind: str) -> Part | None:
    """The image, audio or file that a part of a message holds, of type `kind` in any provider's shape."""
    if kind not in MEDIA_TYPES:
        kind = next(
            (key for key in ("image", "inline_data", "inlineData", "file_data", "fileData", "media") if key in part), ""
        )
        if not kind or not isinstance(part.get(kind), dict):
            return None
    nested = part.get(kind)
    if isinstance(nested, str):
        nested = {"url": nested}
    source = part.get("source")
    fields: dict[str, Any] = {**part}
    for source_fields in (nested, source, (nested or {}).get("source") if isinstance(nested, dict) else None):
        if isinstance(source_fields, dict):
            fields.update(source_fields)
    if isinstance(image := fields.get("image"), dict):  # OpenInference: image.image.url
        fields.update(image)
    return _build_part(fields, kind)


def _build_part(fields: Mapping[str, Any], kind: str) -> Part:
    mime = select_text(*map(fields.get, _MIME_NAMES)) or ""
    url = select_text(*map(fields.get, _URL_NAMES))
    data: str | None = select_text(*map(fields.get, _DATA_NAMES))
    if url is None and isinstance(data, str) and data.startswith(("data:", "http://", "https://", ATTACHMENT)):
        url = data
        data = None
    if kind == "media" and not mime and url is not None and url.startswith("data:"):
        mime = url[5:100].partition(";")[0]
    attachment = url if url is not None and url.startswith(ATTACHMENT) else ""
    if attachment and not mime:
        mime = parse_qs(urlsplit(attachment).query).get("content_type", [""])[0]
    modality = fields.get("modality")
    is_audio = "audio" in kind or modality == "audio" or mime.startswith("audio/")
    is_image = "image" in kind or modality == "image" or mime.startswith("image/")
    if is_audio:
        audio_format = select_text(fields.get("format")) or mime.rpartition("/")[2] or "wav"
        audio_format = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}.get(audio_format, audio_format)
        return Part("audio", url=url or "", data=data or attachment, format=audio_format)
    if data is not None and url is None:
        image_format = select_text(fields.get("format")) or "png"
        url = f"data:{mime or (f'image/{image_format}' if is_image else 'application/octet-stream')};base64,{data}"
    if is_image:
        return Part("image", url=url or "", format=mime)
    name = select_text(*map(fields.get, _FILE_NAMES))
    return Part("file", text=name or "", url=url or "", format=mime)


def _read_untyped_part(part: dict[str, Any], draft: _MessageDraft) -> bool:
    """Read a part that is identified by a key: Gemini, Bedrock, Strands, Haystack; False if there is none."""
    reasoning = part.get("reasoningContent")
    if isinstance(reasoning, dict):
        reasoning_text = reasoning.get("reasoningText")
        draft.add_reasoning(reasoning_text.get("text") if isinstance(reasoning_text, dict) else reasoning_text)
    elif key := next((key for key in _KEYED_PART_READERS if isinstance(part.get(key), dict)), None):
        _KEYED_PART_READERS[key](part[key], draft)
    elif isinstance(part.get("text"), str):
        (draft.add_reasoning if part.get("thought") is True else draft.add_text)(part["text"])
    else:
        return False
    return True


def _read_tool_results(content: Any, draft: _MessageDraft) -> bool:
    """Read results that name their calls in a `tool` message; False if the content is the result itself."""
    if isinstance(content, str) and content.lstrip()[:2] == "[{":
        content = parse_structured(content)
    if not isinstance(content, list) or not content:
        return False
    if not all(isinstance(part, dict) and _is_tool_result(part) for part in content):
        return False
    for part in content:
        _read_part(part, draft)
    return True


def _is_tool_result(part: Mapping[str, Any]) -> bool:
    return part.get("type") in _TOOL_RESULT_TYPES or any(key in part for key in _TOOL_RESULT_KEYS)


def to_result_text(value: Any) -> str:
    """A tool's result as text: that of content blocks, otherwise JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) for item in value):
        texts = [item.get("text", item.get("content")) for item in value if not item.keys() - _TEXT_BLOCK_KEYS]
        if len(texts) == len(value) and all(isinstance(item, str) for item in texts):
            return "\n".join(texts)
    return to_json(value)


def read_system_message(value: Any) -> Message | None:
    """A message from system instructions: a text, or parts as JSON text or structured."""
    parsed = parse_structured(value)
    draft = _MessageDraft()
    _read_content(parsed if parsed is not None else value, draft)
    return Message("system", tuple(draft.parts)) if draft.parts else None
