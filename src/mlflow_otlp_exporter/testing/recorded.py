"""`RecordedSpan` and `RecordedTrace`: spans and traces as the exporter sent them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.common import attribute_names as names

_STATUS = {0: "UNSET", 1: "OK", 2: "ERROR"}


@dataclass(frozen=True)
class RecordedSpan:
    """A span as the exporter sent it.

    Attributes:
        name: Name of the span.
        trace_id: OpenTelemetry's trace id, in hexadecimal.
        span_id: Id of the span, in hexadecimal.
        parent_id: Id of the parent span, in hexadecimal; empty for a root span.
        attributes: Attributes of the span; arrays are lists.
        events: Name and attributes of each event.
        status: `UNSET`, `OK` or `ERROR`.
        message: Description of the status.
        start: Start time, in nanoseconds since 1970.
        end: End time, in nanoseconds since 1970.
        scope: Name of the instrumentation scope.
        resource: Attributes of the resource.
        experiment: Name of the experiment; its id if the setting was an id.
        workspace: Name of the workspace; None for the server's default.
        run_id: Id of the run that the trace is linked to.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    events: Sequence[tuple[str, Mapping[str, Any]]]
    status: str
    message: str
    start: int
    end: int
    scope: str
    resource: Mapping[str, Any]
    experiment: str | None
    workspace: str | None
    run_id: str | None

    @property
    def kind(self) -> str:
        """OpenInference's span kind, such as `AGENT`; empty if the span has none."""
        return str(self.attributes.get(names.SPAN_KIND, ""))

    @property
    def inputs(self) -> Any:
        """The inputs: a text, or the parsed value if they are JSON; None if the span has none."""
        return self._value(names.INPUT_VALUE, names.INPUT_MIME_TYPE, names.SPAN_INPUTS)

    @property
    def outputs(self) -> Any:
        """The outputs: a text, or the parsed value if they are JSON; None if the span has none."""
        return self._value(names.OUTPUT_VALUE, names.OUTPUT_MIME_TYPE, names.SPAN_OUTPUTS)

    def _value(self, name: str, mime_type: str, mlflow: str) -> Any:
        if name in self.attributes:
            value, is_json = self.attributes[name], self.attributes.get(mime_type) == names.JSON
        else:  # removed (`compact`), because MLflow's attribute has the same content
            value = self.attributes.get(mlflow)
            is_json = isinstance(value, str) and value[:1] in ("{", "[", '"')
        if is_json:
            with suppress(TypeError, ValueError):
                return json.loads(value)
        return value


@dataclass(frozen=True)
class RecordedToolCall:
    """A call of a tool: a span of the kind `TOOL`.

    Attributes:
        name: Name of the tool.
        arguments: The arguments as MLflow shows them, most often a mapping.
        result: The result as MLflow shows it.
        is_error: Whether the call failed.
    """

    name: str
    arguments: Any
    result: Any
    is_error: bool


@dataclass(frozen=True)
class RecordedDocument:
    """A document that a retriever or reranker returned.

    Attributes:
        content: The text.
        id: The document's id.
        score: The score, if the retriever has one.
        metadata: Further values.
    """

    content: str
    id: str | None = None
    score: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedUsage:
    """Tokens, as MLflow counts them for a trace.

    Attributes:
        input_tokens: Number of prompt tokens.
        output_tokens: Number of completion tokens.
        total_tokens: Number of all tokens.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True)
class RecordedTrace:
    """A trace as the exporter sent it, in one or more requests.

    Attributes:
        spans: The spans, ordered by start time.
    """

    spans: Sequence[RecordedSpan]

    @property
    def trace_id(self) -> str:
        """OpenTelemetry's trace id, in hexadecimal."""
        return self.spans[0].trace_id

    @property
    def root(self) -> RecordedSpan:
        """The first span whose parent was not recorded."""
        span_ids = {span.span_id for span in self.spans}
        return next(span for span in self.spans if span.parent_id not in span_ids)

    def span(self, name: str) -> RecordedSpan:
        """Return the first span with this name.

        Args:
            name: Name of the span.

        Returns:
            The span.

        Raises:
            LookupError: There is no such span; the message contains the names of all spans.
        """
        for span in self.spans:
            if span.name == name:
                return span
        raise LookupError(f"no span {name!r}, but {[span.name for span in self.spans]}")

    def _children(self) -> dict[str, list[RecordedSpan]]:
        """Return the spans by the id of their parent; those without a recorded parent by an empty id."""
        span_ids = {span.span_id for span in self.spans}
        children: dict[str, list[RecordedSpan]] = {}
        for span in self.spans:
            children.setdefault(span.parent_id if span.parent_id in span_ids else "", []).append(span)
        return children

    @property
    def tool_calls(self) -> list[RecordedToolCall]:
        """The calls of tools, ordered by start time."""
        return [
            RecordedToolCall(
                str(span.attributes.get(names.TOOL_NAME) or span.name),
                _read_enriched(span, names.SPAN_INPUTS, span.inputs),
                _read_enriched(span, names.SPAN_OUTPUTS, span.outputs),
                span.status == "ERROR",
            )
            for span in self.spans
            if span.kind == "TOOL"
        ]

    @property
    def documents(self) -> list[RecordedDocument]:
        """The documents of all retrievers and rerankers, in the order of their spans."""
        return [
            document
            for span in self.spans
            if span.kind in ("RETRIEVER", "RERANKER")
            for document in _parse_documents(span)
        ]

    @property
    def usage(self) -> RecordedUsage:
        """The tokens of the trace: the usage of a span counts instead of that of the spans inside it."""
        children = self._children()

        def walk(parent: str) -> Iterator[Mapping[str, int]]:
            for span in children.get(parent, []):
                usage = _parse_usage(span)
                if usage:
                    yield usage
                else:
                    yield from walk(span.span_id)

        usages = list(walk(""))
        return RecordedUsage(*(sum(usage.get(name, 0) for usage in usages) for name in _USAGE))

    def assert_tool_called(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, times: int | None = None
    ) -> RecordedToolCall:
        """Assert that a tool was called.

        Args:
            name: Name of the tool.
            arguments: Arguments that the call has, among others; None for any.
            times: Number of such calls; None for at least one.

        Returns:
            The first such call.

        Raises:
            AssertionError: There is no such call, or another number of them; the message contains all calls.
        """
        calls = [
            call
            for call in self.tool_calls
            if call.name == name
            and (arguments is None or (isinstance(call.arguments, Mapping) and _contains(call.arguments, arguments)))
        ]
        if len(calls) != times if times is not None else not calls:
            expected = "once or more" if times is None else f"{times} times"
            description = name if arguments is None else f"{name} with {dict(arguments)}"
            raise AssertionError(f"{description} was called {len(calls)} times, not {expected}; {self.tool_calls}")
        return calls[0] if calls else RecordedToolCall(name, arguments, None, is_error=False)

    def assert_documents(self, *expected: str) -> list[RecordedDocument]:
        """Assert which documents were retrieved, in any order.

        Args:
            *expected: The id of each document, or its content.

        Returns:
            The documents.

        Raises:
            AssertionError: A document is missing, or there is another one; the message contains all documents.
        """
        documents = self.documents
        missing = [text for text in expected if not any(text in (item.id, item.content) for item in documents)]
        others = [item for item in documents if item.id not in expected and item.content not in expected]
        if missing or others:
            raise AssertionError(f"missing documents: {missing}, others: {others}; {documents}")
        return documents

    def assert_tokens(self, *, at_most: int | None = None, at_least: int = 1) -> RecordedUsage:
        """Assert the number of tokens of the trace.

        Args:
            at_most: The largest number of all tokens; None for any.
            at_least: The smallest number.

        Returns:
            The usage.

        Raises:
            AssertionError: There are more or fewer tokens.
        """
        usage = self.usage
        if usage.total_tokens < at_least or (at_most is not None and usage.total_tokens > at_most):
            limit = "" if at_most is None else f" and at most {at_most}"
            raise AssertionError(f"{usage.total_tokens} tokens, expected at least {at_least}{limit}; {usage}")
        return usage

    @property
    def tree(self) -> list[str]:
        """The names of all spans, depth first, indented by two spaces per level."""
        children = self._children()

        def walk(parent: str, depth: int) -> Iterator[str]:
            for span in children.get(parent, []):
                yield "  " * depth + span.name
                yield from walk(span.span_id, depth + 1)

        return list(walk("", 0))

    @property
    def session(self) -> str | None:
        """The session id of the first span that has one."""
        return self._first_value(names.SESSION_ID)

    @property
    def user(self) -> str | None:
        """The user id of the first span that has one."""
        return self._first_value(names.USER_ID)

    @property
    def tags(self) -> dict[str, str]:
        """The trace's tags, without those that MLflow reserves (`mlflow.`)."""
        prefix = names.TRACE_TAG
        return {
            name.removeprefix(prefix): str(value)
            for name, value in self.root.attributes.items()
            if name.startswith(prefix) and not name.startswith(f"{prefix}mlflow.")
        }

    def _first_value(self, name: str) -> str | None:
        return next((str(span.attributes[name]) for span in self.spans if name in span.attributes), None)


_USAGE = {"input_tokens": names.TOKENS_IN, "output_tokens": names.TOKENS_OUT, "total_tokens": names.TOKENS_TOTAL}


def _parse_usage(span: RecordedSpan) -> dict[str, int]:
    written = _parse_json(span.attributes.get(names.USAGE))
    usage = {name: span.attributes.get(attribute) for name, attribute in _USAGE.items()}
    usage |= written if isinstance(written, dict) else {}
    return {name: value for name in _USAGE if isinstance(value := usage.get(name), int)}


def _parse_documents(span: RecordedSpan) -> Iterator[RecordedDocument]:
    """Return the documents, which the exporter writes as outputs."""
    items = _parse_json(span.attributes.get(names.SPAN_OUTPUTS))
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and "page_content" in item:
            metadata = dict(item.get("metadata") or {})
            score = metadata.pop("score", None)
            document_id = item.get("id")
            yield RecordedDocument(
                str(item["page_content"]), None if document_id is None else str(document_id), score, metadata
            )


def _read_enriched(span: RecordedSpan, name: str, value: Any) -> Any:
    """Return what enrichment wrote for MLflow, without an instrumentation's envelope; `value` if it wrote nothing."""
    return _parse_json(span.attributes[name]) if name in span.attributes else value


def _parse_json(value: Any) -> Any:
    with suppress(TypeError, ValueError):
        return json.loads(value)
    return None


def _contains(values: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] == value for name, value in expected.items())


def parse_spans(request: ExportTraceServiceRequest, destination: Mapping[str, Any]) -> list[RecordedSpan]:
    """Return the spans of a request; `destination` is experiment, workspace and run."""
    return [
        _parse_span(span, scope.scope.name, _to_dict(resource.resource.attributes), destination)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _parse_span(span: Any, scope: str, resource: Mapping[str, Any], destination: Mapping[str, Any]) -> RecordedSpan:
    return RecordedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_to_dict(span.attributes),
        events=[(event.name, _to_dict(event.attributes)) for event in span.events],
        status=_STATUS.get(span.status.code, "UNSET"),
        message=span.status.message,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        scope=scope,
        resource=resource,
        **destination,
    )


def _to_dict(items: Any) -> dict[str, Any]:
    return {item.key: _to_value(item.value) for item in items}


def _to_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    content = getattr(value, kind)
    if kind == "array_value":
        return [_to_value(item) for item in content.values]
    return _to_dict(content.values) if kind == "kvlist_value" else content
