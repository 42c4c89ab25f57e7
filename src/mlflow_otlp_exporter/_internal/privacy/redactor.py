"""Redact spans before any other code reads, extends or writes them: hide, limit and mask each part of a span.

`hide_rules.py` knows what to hide, `inline_data.py` limits sizes, and `mask.py` masks the texts in a value.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Status

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import PrivacySettings
from mlflow_otlp_exporter._internal.model.spans import Attachment, SpanCopy, replace_event, replace_link
from mlflow_otlp_exporter._internal.privacy.inline_data import InlineDataReplacer
from mlflow_otlp_exporter._internal.privacy.mask import Mask, make_mask

_SCALARS = (int, float, bool)
_MAX_CACHED_RESOURCES = 256
_DEFAULT_SERVICE_NAME = "unknown_service"  # of OpenTelemetry's SDK


class RedactedSpan(SpanCopy):
    """A copy of an ended span with other content; `attachments` are the files that were extracted from it."""

    attachments: tuple[Attachment, ...] = ()


class Redactor:
    """Hides, limits and masks the content of spans; threads may share it.

    `base64_max_length` limits the characters of base64 of an image, an audio or a file.
    """

    def __init__(self, settings: PrivacySettings, problem_log: ProblemLog, *, base64_max_length: int) -> None:
        self._problem_log = problem_log
        self.mask: Mask | None = make_mask(settings.mask, self._on_mask_error)
        self._inline_data = InlineDataReplacer(base64_max_length)
        self.max_value_length = self._inline_data.max_length
        self._hide_variables = settings.hide
        # Whether nothing is masked or hidden; the size limit does not count, because it protects no secrets.
        self.is_idle = self.mask is None and not self._hide_variables
        # By id, together with the original: as long as that is referenced, no other object has its id.
        self._resources: dict[int, tuple[Resource, Resource]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope, InstrumentationScope]] = {}

    def _on_mask_error(self, error: BaseException) -> None:
        # Without the text of the exception, which may quote the text that had to be masked.
        message = f"Mask failed with {type(error).__name__}: the text was hidden. Further failures are not logged."
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.MASK_FAILED, message))

    def redact_spans(self, spans: Sequence[ReadableSpan]) -> tuple[Sequence[ReadableSpan], int]:
        """Return the redacted spans, and the number of spans that could not be redacted and must not be sent."""
        try:
            if self.is_idle and not any(map(self._has_long_value, spans)):
                return spans, 0
        except BaseException as error:  # a structured value of hundreds of levels: its span alone is dropped below
            if must_propagate(error):
                raise
        redacted: list[ReadableSpan] = []
        for span in spans:
            try:
                redacted.append(self.redact(span))
            except BaseException as error:  # the span may hold a secret, so it is not sent
                if must_propagate(error):
                    raise
        return redacted, len(spans) - len(redacted)

    def _has_long_value(self, span: ReadableSpan) -> bool:
        """Whether a value may exceed the limit; the only cost per span when nothing is configured."""
        max_length, has_long_value = self._inline_data.max_length, self._inline_data.has_long_value
        groups = [span.attributes, *[event.attributes for event in span.events]]
        for attributes in groups:
            if not attributes:
                continue
            for value in (attributes.copy() if hasattr(attributes, "copy") else attributes).values():
                value_type = value.__class__
                if value_type is str:
                    if len(value) > max_length:  # type: ignore[arg-type]  # it is a str
                        return True
                elif value_type not in _SCALARS and has_long_value(value):
                    return True
        return False

    def redact(self, span: ReadableSpan) -> ReadableSpan:
        """Redact a span; return the same object if there is nothing to redact. Raises for objects that are no spans."""
        if self.is_idle and not self._has_long_value(span):
            return span
        attributes, events = copy_attributes(span), list(span.events)
        if self._hide_variables:
            attributes, events = self._hide_content(span, attributes, events)
        attributes = self._inline_data.replace_in_attributes(attributes)
        events = [
            replace_event(event, event.name, self._inline_data.replace_in_attributes(dict(event.attributes or {})))
            for event in events
        ]
        changes: dict[str, Any] = {}
        mask = self.mask
        if mask is not None:
            attributes = _mask_attributes(mask, attributes)
            events = [
                replace_event(event, mask.mask_name(event.name), _mask_attributes(mask, event.attributes or {}))
                for event in events
            ]
            links = [
                replace_link(link, _mask_attributes(mask, link.attributes)) if link.attributes else link
                for link in span.links
            ]
            resource, scope = self._mask_resource_and_scope(span, mask)
            changes = {
                "name": mask.mask_text(str(span.name)),
                "links": links,
                "resource": resource,
                "instrumentation_scope": scope,
            }
            if span.status.description:
                changes["status"] = Status(span.status.status_code, mask.mask_text(span.status.description))
        return RedactedSpan(span, attributes=attributes, events=events, **changes)

    def _mask_resource_and_scope(self, span: ReadableSpan, mask: Mask) -> tuple[Resource, InstrumentationScope | None]:
        resource, scope = span.resource, span.instrumentation_scope
        cached = self._resources.get(id(resource))
        if cached is None:
            cached = resource, Resource(_mask_attributes(mask, resource.attributes), resource.schema_url)
            evict_oldest(self._resources, _MAX_CACHED_RESOURCES)[id(resource)] = cached
        if scope is None or not scope.attributes:
            return cached[1], scope
        cached_scope = self._scopes.get(id(scope))
        if cached_scope is None:
            attributes = _mask_attributes(mask, scope.attributes)
            cached_scope = scope, InstrumentationScope(scope.name, scope.version, scope.schema_url, attributes)
            evict_oldest(self._scopes, _MAX_CACHED_RESOURCES)[id(scope)] = cached_scope
        return cached[1], cached_scope[1]

    def _hide_content(
        self, span: ReadableSpan, attributes: dict[str, Any], events: Sequence[Event]
    ) -> tuple[dict[str, Any], list[Event]]:
        # Few applications hide content.
        from mlflow_otlp_exporter._internal.enrichment.enricher import read_span
        from mlflow_otlp_exporter._internal.installed_readers import InstalledReaders
        from mlflow_otlp_exporter._internal.privacy.hide_rules import HideRules

        InstalledReaders.load()  # they declare where spans of other packages hold content
        rules = HideRules(self._hide_variables, read_span(span).kind, attributes)
        visible_events, hidden_sides = rules.hide_in_events(events)
        attributes = rules.hide_in_attributes(attributes)
        for side in hidden_sides:
            attributes.setdefault(f"{side}.value", REDACTED)
        return attributes, visible_events


def copy_attributes(span: ReadableSpan) -> dict[str, Any]:
    """Copy the attributes of a span, under their own lock where they have one."""
    attributes: Any = span.attributes or {}
    return dict(attributes.copy() if hasattr(attributes, "copy") else attributes)


def _mask_attributes(mask: Mask, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {mask.mask_name(key): mask.mask_attribute(str(key), value) for key, value in attributes.items()}


def make_resource_filter(patterns: Sequence[str]) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
    """Make a filter that drops resource attributes by shell patterns of their keys; None without patterns.

    MLflow creates a tag of each resource attribute, on every trace.
    """
    if not patterns:
        return None
    return lambda attributes: {
        key: value
        for key, value in attributes.items()
        if not any(fnmatchcase(key, pattern) for pattern in patterns)
        and not (key == "service.name" and str(value).startswith(_DEFAULT_SERVICE_NAME))
    }
