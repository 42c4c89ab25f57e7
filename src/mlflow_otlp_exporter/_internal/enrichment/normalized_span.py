"""The normal form: the content of a span about a language model, in whatever convention the span was written."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.enrichment.kinds import Kind


class Part(NamedTuple):
    """A piece of a message's content."""

    kind: str  # `text`, `image`, `audio` or `file`
    text: str = ""  # the text of a text part, the label of others
    url: str = ""  # http, https or a data URL
    data: str = ""  # Base64 of an audio part
    format: str = ""  # an audio part's format, such as `wav`; a file's media type


class ToolCall(NamedTuple):
    """A tool call that a model requested; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(NamedTuple):
    """A message; the role is `system`, `user`, `assistant` or `tool`."""

    role: str
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""

    @property
    def text(self) -> str:
        """The text of all text parts, one per line."""
        if len(self.parts) == 1:
            part = self.parts[0]
            return part.text if part.kind == "text" else ""
        return "\n".join([part.text for part in self.parts if part.kind == "text"])


class ToolDefinition(NamedTuple):
    """A tool that was offered to a model; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


class Document(NamedTuple):
    """A document that a retriever or a reranker returned."""

    content: str
    id: str = ""
    score: float | None = None
    metadata: Mapping[str, Any] | None = None


class Usage(NamedTuple):
    """Token counts; None if unknown. `input` includes the tokens that were read from a cache."""

    input: int | None = None
    output: int | None = None
    total: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    input_audio: int | None = None
    output_audio: int | None = None
    cache_write_1h: int | None = None  # the part of `cache_write` that went to Anthropic's one-hour cache


class Cost(NamedTuple):
    """US dollars."""

    input: float | None = None
    output: float | None = None
    total: float | None = None


class Prompt(NamedTuple):
    """A prompt of a registry."""

    name: str
    version: str = ""


class NormalizedSpan(NamedTuple):
    """The content of a span. None: the source does not say."""

    kind: Kind | None = None
    trace_name: str | None = None  # the trace's name if this is its root; otherwise MLflow gets the span's name
    input_messages: tuple[Message, ...] | None = None
    output_messages: tuple[Message, ...] | None = None
    transcript: tuple[Message, ...] | None = None  # all messages of an agent's run
    input: Any = None  # an input that is no list of messages: a text, or a value that JSON can hold
    output: Any = None
    tools: tuple[ToolDefinition, ...] | None = None  # the tools that were offered to the model
    tool_name: str | None = None
    tool_description: str | None = None
    tool_call_id: str | None = None  # the model's call that this tool span executes
    documents: tuple[Document, ...] | None = None  # the output of a retriever or a reranker
    query: str | None = None
    input_documents: tuple[Document, ...] | None = None  # the input of a reranker
    top_k: int | None = None  # how many documents a reranker should return
    embedded_texts: tuple[str, ...] | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    request_model: str | None = None
    response_model: str | None = None
    provider: str | None = None  # as the source writes it
    invocation_parameters: Mapping[str, Any] | None = None  # temperature, for example
    finish_reason: str | None = None
    prompt: Prompt | None = None
    session: str | None = None
    user: str | None = None
    tags: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] | None = None
    agent_name: str | None = None
    error_type: str | None = None
    response_id: str | None = None  # the provider's id of the response
    wraps_calls: bool | None = None  # True if the model calls themselves are spans below this one
    covered_keys: tuple[str, ...] = ()  # keys of attributes whose whole content is in the other fields


EMPTY = NormalizedSpan()
_COVERED_KEYS = NormalizedSpan._fields.index("covered_keys")
_METADATA = NormalizedSpan._fields.index("metadata")
_USAGE = NormalizedSpan._fields.index("usage")


def has_content(messages: Sequence[Message]) -> bool:
    return any(message.parts or message.tool_calls or message.reasoning for message in messages)


def merge(candidates: Sequence[NormalizedSpan]) -> NormalizedSpan:
    """Merge the results of several readers: the first that has a field wins, unless its value is empty.

    If two usages agree on the input tokens, the second fills in counts that the first lacks, such as cached tokens.
    The metadata of all readers is combined.
    """
    fields: list[Any] = list(candidates[0] if candidates else EMPTY)
    for candidate in candidates[1:]:
        for index, value in enumerate(candidate):
            if value is None:
                continue
            if fields[index] is None:
                fields[index] = value
            elif index == _COVERED_KEYS:
                fields[index] = (*fields[index], *value)
            elif _is_empty(fields[index]):
                fields[index] = value if not _is_empty(value) else fields[index]
            elif index == _METADATA:
                fields[index] = {**value, **fields[index]}
            elif index == _USAGE:
                fields[index] = _fill_missing_counts(fields[index], value)
    return NormalizedSpan(*fields)


def _is_empty(value: Any) -> bool:
    """Whether a value says nothing: an empty text or object, messages without content, counts that are all 0."""
    if isinstance(value, (Usage, Cost)):
        return not any(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Message):
        return not has_content(value)
    return value in ("", (), [], {})


def _fill_missing_counts(usage: Usage, other: Usage) -> Usage:
    if None not in usage or (usage.input is not None and other.input is not None and usage.input != other.input):
        return usage
    merged = Usage(*(b if a is None else a for a, b in zip(usage, other, strict=True)))
    # Not the total: some sources count reasoning tokens into it, others do not.
    return merged._replace(total=usage.total)
