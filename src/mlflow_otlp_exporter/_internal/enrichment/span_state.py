"""A span while it is enriched, and the summary that the trace cache keeps of it."""

import operator
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter._internal.enrichment.kinds import AGENT, EMBEDDING, MODEL_KINDS, TOOL, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    EMPTY,
    NormalizedSpan,
    Prompt,
    ToolCall,
    ToolDefinition,
)
from mlflow_otlp_exporter._internal.enrichment.payloads import find_last_text, read_answer, read_question
from mlflow_otlp_exporter._internal.enrichment.tools import is_error_result
from mlflow_otlp_exporter._internal.enrichment.values import to_json
from mlflow_otlp_exporter._internal.model.spans import IS_REMOTE, SPAN_ID

_Value = TypeVar("_Value")
# Longer texts are truncated in summaries: they only serve previews of at most 1,000 characters.
_MAX_TEXT_LENGTH = 32_768
_MAX_TOOL_CALLS = 64
_read_trace_fields = operator.itemgetter(
    *map(NormalizedSpan._fields.index, ("session", "user", "tags", "metadata", "prompt"))
)
_NO_CONTENT: dict[str, Any] = dict.fromkeys(
    ("input_messages", "output_messages", "transcript", "input", "output", "documents")
)
# Reading a member of an Enum takes 0.1 us before Python 3.12.
_UNSET, _ERROR = StatusCode.UNSET, StatusCode.ERROR
_SUMMING_KINDS = (AGENT, Kind.CHAIN, Kind.WORKFLOW)
_NO_CONVERSATION = (TOOL, Kind.RETRIEVER, Kind.RERANKER, EMBEDDING, *MODEL_KINDS)


class CallSummary(NamedTuple):
    """What tells whether two spans with token usage describe the same call."""

    counts: tuple[int | None, int | None]  # input, output
    is_model: bool
    scope: str
    model: str  # without the provider's prefix
    response_id: str
    start_time: int
    end_time: int
    trace_id: int
    process: Any  # the resource, which all spans of a process share; not its id, which another may get once it is gone


class SpanSummary(NamedTuple):
    """What later spans of the same trace may need from a span; the fields are those of SpanState."""

    span_id: int
    parent_id: int | None
    start_time: int
    end_time: int
    kind: Kind | None
    scope: str
    has_usage: bool
    call: CallSummary | None
    question: str | None
    answer: str | None
    tool_calls: tuple[ToolCall, ...]
    tools: tuple[ToolDefinition, ...] | None
    raw_input: Any
    raw_output: Any
    name: str
    earlier_questions: tuple[int, ...]
    normalized: NormalizedSpan  # only session, user, tags, metadata and prompt, which the root may need


class LazyAttribute(Generic[_Value]):
    """An attribute that is read when it is needed first, and may be set.

    Not functools.cached_property: before Python 3.12 it has a lock, which another thread may hold during a fork.
    """

    def __init__(self, read: Callable[[Any], _Value]) -> None:
        self._read, self._name = read, read.__name__

    def __get__(self, instance: Any, _: Any) -> _Value:
        value = instance.__dict__[self._name] = self._read(instance)
        return value


class SpanState:
    """A span on its way through enrichment; only this package's stages change it."""

    parent_id: int | None = None
    # Whether it stands for the trace: the root, or the top span of this process, whose caller MLflow may not have.
    is_local_root = True
    normalized, kind = EMPTY, EMPTY.kind
    has_own_kind = True  # False if the kind was guessed from the content
    counts_usage = True  # False if spans below have the same usage, or another span describes the same call
    has_usage = False  # whether the span is exported with token usage
    # Of a root: session, user, tags and metadata of all spans below; prompts of a registry with a version.
    trace_fields: NormalizedSpan | None = None
    prompts: tuple[Prompt, ...] = ()

    def __init__(self, span: ReadableSpan, attributes: dict[str, Any]) -> None:
        context: Any = span.context
        parent: Any = span.parent
        scope = span.instrumentation_scope
        self.span = span
        self.name = span.name
        self.start_time, self.end_time = span.start_time or 0, span.end_time or 0  # nanoseconds
        self.trace_id, self.span_id = context[:2]
        if parent is not None:
            self.parent_id, self.is_local_root = parent[SPAN_ID], parent[IS_REMOTE]
        self.attributes = attributes
        self.events = span.events
        self.scope = scope.name if scope is not None else ""

    @LazyAttribute
    def question(self) -> str | None:
        """The last text of the user in the span's own input; a root or an agent without one gets that of others."""
        text = find_last_text(self.normalized.input_messages, "user")
        return read_question(self.normalized.input) if text is None and self.kind not in _NO_CONVERSATION else text

    @LazyAttribute
    def answer(self) -> str | None:
        normalized = self.normalized
        text = find_last_text(normalized.output_messages, "assistant")
        if text is not None or self.kind in _NO_CONVERSATION:
            return text
        return read_answer(normalized.output, is_conversation=normalized.input is None or self.question is not None)

    @LazyAttribute
    def has_failed(self) -> bool:
        """Whether the span's status is an error, or is unset although the content tells of an error."""
        code = self.span.status.status_code
        if code is not _UNSET or self.kind is None:
            return code is _ERROR
        normalized = self.normalized
        return bool(normalized.error_type) or (self.kind is TOOL and is_error_result(normalized.output))

    @LazyAttribute
    def call(self) -> CallSummary | None:
        """The call whose usage the span states; None for agents, which state the usage of several."""
        normalized = self.normalized
        usage = normalized.usage
        if usage is None or self.kind in _SUMMING_KINDS:
            return None
        model = (normalized.response_model or normalized.request_model or "").rpartition("/")[2]
        is_model = self.has_own_kind and (self.kind in MODEL_KINDS or self.kind is EMBEDDING)
        times = (self.start_time, self.end_time)
        response_id = normalized.response_id or ""
        return CallSummary(
            usage[:2], is_model, self.scope, model, response_id, *times, self.trace_id, self.span.resource
        )

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that a model requested in this span."""
        messages = self.normalized.output_messages
        return tuple([call for message in messages for call in message.tool_calls]) if messages else ()

    @property
    def tools(self) -> tuple[ToolDefinition, ...] | None:
        """The tools that the span declares; a tool that describes itself is one."""
        normalized = self.normalized
        if normalized.tool_description and not normalized.tools and self.kind is TOOL and normalized.tool_name:
            return (ToolDefinition(normalized.tool_name, normalized.tool_description),)
        return normalized.tools

    @property
    def raw_input(self) -> Any:
        normalized = self.normalized
        raw = normalized.input if normalized.input is not None else normalized.query
        return raw if raw is not None or not normalized.embedded_texts else list(normalized.embedded_texts)

    @property
    def raw_output(self) -> Any:
        return self.normalized.output

    @property
    def earlier_questions(self) -> tuple[int, ...]:
        """The hashes of the user's texts in the history of a model call, before the last."""
        messages = self.normalized.input_messages or ()
        texts = [message.text for message in messages if message.role == "user"]
        return tuple([hash(text) for text in texts[:-1] if text])

    def summarize(self) -> SpanSummary:
        normalized = self.normalized
        self.__dict__.pop("call", None)  # kind and model may have changed
        fields = {field: getattr(self, field) for field in SpanSummary._fields}
        fields["question"], fields["answer"] = (
            text and text[:_MAX_TEXT_LENGTH] for text in (self.question, self.answer)
        )
        fields["raw_input"], fields["raw_output"] = _limit_text(self.raw_input), _limit_text(self.raw_output)
        fields["tool_calls"] = self.tool_calls[:_MAX_TOOL_CALLS]
        has_trace_fields = any(_read_trace_fields(normalized))
        fields["normalized"] = normalized._replace(**_NO_CONTENT) if has_trace_fields else EMPTY
        return SpanSummary(**fields)


def _limit_text(value: Any) -> str | None:
    """A value as text, None if it is long."""
    text = value if value is None or isinstance(value, str) else to_json(value)
    return text if text is not None and len(text) < _MAX_TEXT_LENGTH else None


def collect_trace_fields(root: SpanState, members: Iterable[SpanState | SpanSummary]) -> None:
    """Set session, user, tags, metadata and prompts of a root from the spans of its trace, nearest first."""
    tags, metadata, prompts = dict[str, None](), dict[str, Any](), dict[Prompt, None]()
    session = user = None
    last_fields = _read_trace_fields(EMPTY)  # spans of a trace mostly have the same
    for member in members:
        normalized = member.normalized
        fields = _read_trace_fields(normalized)
        if fields == last_fields:
            continue
        session, user = session or normalized.session, user or normalized.user
        if normalized.session != session and normalized.session and isinstance(member, SpanState):
            member.attributes["session.id"] = session  # MLflow takes that of any span
        if normalized.prompt is not None and normalized.prompt.version:
            prompts[normalized.prompt] = None
        if normalized.tags:
            tags.update(dict.fromkeys(normalized.tags))
        if normalized.metadata:
            metadata |= {key: value for key, value in normalized.metadata.items() if key not in metadata}
        last_fields = fields if fields[0] in (None, session) else None
    root.trace_fields = NormalizedSpan(session=session, user=user, tags=tuple(tags) or None, metadata=metadata or None)
    root.prompts = tuple(prompts)
