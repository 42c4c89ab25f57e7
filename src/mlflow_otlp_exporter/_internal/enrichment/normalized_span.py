"""The normal form: what a span about a language model says, whatever convention it was written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple


class Kind(str, Enum):
    """What a span is; the value is MLflow's span type."""

    CHAT_MODEL = "CHAT_MODEL"
    LLM = "LLM"
    AGENT = "AGENT"
    CHAIN = "CHAIN"
    WORKFLOW = "WORKFLOW"
    TASK = "TASK"
    TOOL = "TOOL"
    RETRIEVER = "RETRIEVER"
    RERANKER = "RERANKER"
    EMBEDDING = "EMBEDDING"
    GUARDRAIL = "GUARDRAIL"
    EVALUATOR = "EVALUATOR"
    MEMORY = "MEMORY"
    PARSER = "PARSER"
    PROMPT = "PROMPT"
    DECISION = "DECISION"
    UNKNOWN = "UNKNOWN"


class Part(NamedTuple):
    """A piece of a message's content.

    Attributes:
        kind: `text`, `image`, `audio` or `file`.
        text: The text of a text part; what is shown for others.
        url: Where it is: http, https or a data URL.
        data: Base64 of an audio part.
        format: An audio part's format, such as `wav`; a file's media type.
    """

    kind: str
    text: str = ""
    url: str = ""
    data: str = ""
    format: str = ""


class ToolCall(NamedTuple):
    """A call that a model asked for; arguments are JSON text."""

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
        """All its text."""
        if len(self.parts) == 1:
            part = self.parts[0]
            return part.text if part.kind == "text" else ""
        return "\n".join([part.text for part in self.parts if part.kind == "text"])


class ToolDefinition(NamedTuple):
    """A tool that a model was offered; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


class Document(NamedTuple):
    """A document that was found."""

    content: str
    id: str = ""
    score: float | None = None
    metadata: Mapping[str, Any] | None = None


class Usage(NamedTuple):
    """Counts of tokens; None if unknown. `input` includes what was read from a cache."""

    input: int | None = None
    output: int | None = None
    total: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    input_audio: int | None = None
    output_audio: int | None = None


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
    """What is known of a span. None: this source does not say.

    Attributes:
        kind: What it is.
        title: What the trace should be called if this is its root; the span's name otherwise.
        input_messages: What the model, or the agent, was given.
        output_messages: What it answered.
        transcript: All messages of an agent's run.
        input: Another input than messages: a text, or what JSON can say.
        output: Another output.
        tools: What the model was offered.
        tool_name: Which tool this is.
        tool_description: What it does.
        tool_call_id: Which call of the model it answers.
        documents: What was found.
        query: What was looked for.
        input_documents: What a reranker was given.
        top_k: How many it should return.
        embedded_texts: What was embedded.
        usage: Tokens.
        cost: Cost.
        request_model: The model that was asked for.
        response_model: The model that answered.
        provider: Who serves it, in the words of the source.
        invocation_parameters: Temperature and the like.
        finish_reason: Why the model stopped.
        prompt: The prompt that was used.
        session: The conversation.
        user: The user.
        tags: Words.
        metadata: More about the trace.
        agent_name: The agent's name.
        error_type: What failed.
        response_id: The provider's id of the answer.
        wraps_calls: True if the spans of the calls themselves are below.
        carried: Keys of attributes whose content is wholly in the other fields.
    """

    kind: Kind | None = None
    title: str | None = None
    input_messages: tuple[Message, ...] | None = None
    output_messages: tuple[Message, ...] | None = None
    transcript: tuple[Message, ...] | None = None
    input: Any = None
    output: Any = None
    tools: tuple[ToolDefinition, ...] | None = None
    tool_name: str | None = None
    tool_description: str | None = None
    tool_call_id: str | None = None
    documents: tuple[Document, ...] | None = None
    query: str | None = None
    input_documents: tuple[Document, ...] | None = None
    top_k: int | None = None
    embedded_texts: tuple[str, ...] | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    request_model: str | None = None
    response_model: str | None = None
    provider: str | None = None
    invocation_parameters: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    prompt: Prompt | None = None
    session: str | None = None
    user: str | None = None
    tags: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] | None = None
    agent_name: str | None = None
    error_type: str | None = None
    response_id: str | None = None
    wraps_calls: bool | None = None
    carried: tuple[str, ...] = ()


EMPTY = NormalizedSpan()
_CARRIED = NormalizedSpan._fields.index("carried")
_METADATA = NormalizedSpan._fields.index("metadata")
_USAGE = NormalizedSpan._fields.index("usage")


def merge(observations: Sequence[NormalizedSpan]) -> NormalizedSpan:
    """One observation of several: the first that says something wins, field by field.

    Details that the winning usage leaves open (cached tokens, say) come from the next, as long as both tell of the same
    input; metadata is put together.
    """
    if not observations:
        return EMPTY
    if len(observations) == 1:
        return observations[0]
    fields: list[Any] = list(observations[0])
    for other in observations[1:]:
        for index, value in enumerate(other):
            if value is None:
                continue
            if fields[index] is None:
                fields[index] = value
            elif index == _CARRIED:
                fields[index] = (*fields[index], *value)
            elif index == _METADATA:
                fields[index] = {**value, **fields[index]}
            elif index == _USAGE:
                fields[index] = _fill_missing_counts(fields[index], value)
    return NormalizedSpan(*fields)


def _fill_missing_counts(usage: Usage, other: Usage) -> Usage:
    if None not in usage or (usage.input is not None and other.input is not None and usage.input != other.input):
        return usage
    # Not the total: one source counts a model's thoughts into it, the other does not.
    filled = Usage(*(theirs if ours is None else ours for ours, theirs in zip(usage, other, strict=True)))
    return filled._replace(total=usage.total)
