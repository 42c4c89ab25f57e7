"""Spans and traces as they came over the wire, for tests."""

from __future__ import annotations

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
    """A span as it came over the wire.

    Attributes:
        name: Its name.
        trace_id: OpenTelemetry's trace id, in hex.
        span_id: Its id, in hex.
        parent_id: Its parent's id, in hex; empty for a root.
        attributes: Its attributes; arrays are lists.
        events: Name and attributes of each event.
        status: `UNSET`, `OK` or `ERROR`.
        message: What came with the status.
        start: When it started, in nanoseconds since 1970.
        end: When it ended.
        scope: The name of the instrumentation that made it.
        resource: The resource's attributes.
        experiment: The experiment's name, or its id if it was given by id.
        workspace: The workspace; None for the server's default.
        run_id: The run that its trace is linked to.
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
        """OpenInference's kind, such as `AGENT`; empty if it has none."""
        return str(self.attributes.get(names.SPAN_KIND, ""))

    @property
    def inputs(self) -> Any:
        """What went in: a text, or the value that its JSON stands for; None if nothing was kept."""
        return self._value(names.INPUT_VALUE, names.INPUT_MIME_TYPE, names.SPAN_INPUTS)

    @property
    def outputs(self) -> Any:
        """What came out, likewise."""
        return self._value(names.OUTPUT_VALUE, names.OUTPUT_MIME_TYPE, names.SPAN_OUTPUTS)

    def _value(self, name: str, mime_type: str, mlflow: str) -> Any:
        if name in self.attributes:
            value, is_json = self.attributes[name], self.attributes.get(mime_type) == names.JSON
        else:  # left out, as MLflow's own attribute has the same
            value = self.attributes.get(mlflow)
            is_json = isinstance(value, str) and value[:1] in ("{", "[", '"')
        if is_json:
            with suppress(TypeError, ValueError):
                return json.loads(value)
        return value


@dataclass(frozen=True)
class RecordedTrace:
    """A trace as it came over the wire, in however many requests.

    Attributes:
        spans: Its spans by their start.
    """

    spans: Sequence[RecordedSpan]

    @property
    def trace_id(self) -> str:
        """OpenTelemetry's trace id, in hex."""
        return self.spans[0].trace_id

    @property
    def root(self) -> RecordedSpan:
        """The span whose parent is not among the recorded ones."""
        known = {span.span_id for span in self.spans}
        return next(span for span in self.spans if span.parent_id not in known)

    def span(self, name: str) -> RecordedSpan:
        """The first span of a name.

        Args:
            name: The span's name.

        Raises:
            LookupError: There is none; the message names those that there are.
        """
        for span in self.spans:
            if span.name == name:
                return span
        raise LookupError(f"no span {name!r}, but {[span.name for span in self.spans]}")

    @property
    def tree(self) -> list[str]:
        """The names of all spans from the root down, two blanks deeper for each level."""
        known = {span.span_id for span in self.spans}
        below: dict[str, list[RecordedSpan]] = {}
        for span in self.spans:
            below.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)

        def walk(parent: str, depth: int) -> Iterator[str]:
            for span in below.get(parent, []):
                yield "  " * depth + span.name
                yield from walk(span.span_id, depth + 1)

        return list(walk("", 0))

    @property
    def session(self) -> str | None:
        """The session that any span names."""
        return self._any(names.SESSION_ID)

    @property
    def user(self) -> str | None:
        """The user that any span names."""
        return self._any(names.USER_ID)

    @property
    def tags(self) -> dict[str, str]:
        """The trace's tags, without those that MLflow keeps for itself."""
        found = {name.removeprefix(names.TRACE_TAG): value for name, value in self.root.attributes.items()}
        return {
            name: str(value)
            for name, value in found.items()
            if names.TRACE_TAG + name in self.root.attributes and not name.startswith("mlflow.")
        }

    def _any(self, name: str) -> str | None:
        return next((str(span.attributes[name]) for span in self.spans if name in span.attributes), None)


def recorded_spans(body: bytes, destination: Mapping[str, Any]) -> list[RecordedSpan]:
    """The spans of a request.

    Args:
        body: An `ExportTraceServiceRequest`.
        destination: Experiment, workspace and run.
    """
    return [
        _span(span, scope.scope.name, _pairs(resource.resource.attributes), destination)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _span(span: Any, scope: str, resource: Mapping[str, Any], destination: Mapping[str, Any]) -> RecordedSpan:
    return RecordedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_pairs(span.attributes),
        events=[(event.name, _pairs(event.attributes)) for event in span.events],
        status=_STATUS[span.status.code],
        message=span.status.message,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        scope=scope,
        resource=resource,
        **destination,
    )


def _pairs(items: Any) -> dict[str, Any]:
    return {item.key: _plain(item.value) for item in items}


def _plain(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    found = getattr(value, which)
    if which == "array_value":
        return [_plain(item) for item in found.values]
    return _pairs(found.values) if which == "kvlist_value" else found
