"""`RecordedSpan` and `RecordedTrace`: spans and traces as the exporter sent them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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

    @property
    def tree(self) -> list[str]:
        """The names of all spans, depth first, indented by two spaces per level."""
        span_ids = {span.span_id for span in self.spans}
        children: dict[str, list[RecordedSpan]] = {}
        for span in self.spans:
            children.setdefault(span.parent_id if span.parent_id in span_ids else "", []).append(span)

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
