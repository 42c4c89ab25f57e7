"""Spans without what must not leave the app: before anything is read from them, added to them or written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import PrivacySettings
from mlflow_otlp_exporter._internal.model.span_data import SpanData, dropped_counts_of, replace_event, replace_link
from mlflow_otlp_exporter._internal.privacy.inline_data import InlineData
from mlflow_otlp_exporter._internal.privacy.mask import Mask, make_mask

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.model.attachment import Attachment

_SCALARS = (int, float, bool)
_MOST_OWNERS = 256
T = TypeVar("T")


class RedactedSpan(SpanData):
    """A copy of an ended span with other contents.

    Args:
        span: The span.
        name: Its name.
        attributes: Its attributes.
        events: Its events.
        links: Its links.
        status: Its status.
        resource: Its resource.
        scope: Its instrumentation scope.

    Attributes:
        attachments: Files that were taken out of it.
    """

    def __init__(
        self,
        span: ReadableSpan,
        name: str,
        attributes: Mapping[str, Any],
        events: Sequence[Event],
        links: Sequence[Link],
        status: Status,
        resource: Resource,
        scope: InstrumentationScope | None,
    ) -> None:
        super().__init__(
            dropped_counts_of(span),
            name=name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=scope,
        )
        self.attachments: tuple[Attachment, ...] = ()


class Redactor:
    """Takes out of spans what must not leave the app; may be used by several threads.

    Args:
        settings: What that is.
        report: Where a mask that fails is told of.
        base64_max_length: Characters of base64 that an image, a sound or a file may have here.

    Attributes:
        mask: What masks texts, if anything does.
    """

    def __init__(self, settings: PrivacySettings, problem_log: ProblemLog, *, base64_max_length: int) -> None:
        self._problem_log = problem_log
        self.mask: Mask | None = make_mask(settings.mask, self._mask_failed)
        self._inline = InlineData(base64_max_length)
        self._hiding: Any = None
        # By identity, and with the original, so that its id stays its own.
        self._resources: dict[int, tuple[Resource, Resource]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope, InstrumentationScope]] = {}
        if settings.hide:
            from mlflow_otlp_exporter._internal.privacy.hide_rules import HideRules  # few apps hide content

            self._hiding = HideRules(frozenset(settings.hide))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is masked or hidden; large payloads are no secrets."""
        return self.mask is None and self._hiding is None

    def _mask_failed(self, error: Exception) -> None:
        # Not the error's text: it may quote what was to be masked.
        said = f"a mask failed ({type(error).__name__}): what it was given is hidden, now and whenever it fails again"
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.MASK_FAILED, said))

    def cleaned(self, spans: Sequence[ReadableSpan]) -> tuple[Sequence[ReadableSpan], int]:
        """Cleans spans.

        Returns:
            The spans that may be sent, and how many cannot be, as they could not be cleaned.
        """
        if self.is_idle and not any(map(self._is_large, spans)):
            return spans, 0
        kept: list[ReadableSpan] = []
        for span in spans:
            try:
                kept.append(self.clean(span))
            except Exception:  # noqa: BLE001, S112 - what is not known to be harmless is not sent
                continue
        return kept, len(spans) - len(kept)

    def _is_large(self, span: ReadableSpan) -> bool:
        """Whether a value may hold a payload over the limit; all that spans cost when nothing is configured."""
        longest, holds = self._inline.longest, self._inline.holds
        groups = [span.attributes, *[event.attributes for event in span.events]]
        for found in groups:
            if not found:
                continue
            for value in (found.copy() if hasattr(found, "copy") else found).values():
                kind = value.__class__
                if kind is str:
                    if len(value) > longest:  # type: ignore[arg-type]  # it is a str
                        return True
                elif kind not in _SCALARS and holds(value):
                    return True
        return False

    def clean(self, span: ReadableSpan) -> ReadableSpan:
        """A span without what must not leave the app; the very same object if there is nothing of that.

        Raises:
            Exception: The object lacks what every span has.
        """
        if self.is_idle and not self._is_large(span):
            return span
        found = span.attributes or {}
        attributes: dict[str, Any] = dict(found.copy() if hasattr(found, "copy") else found)
        events: list[Event] = list(span.events)
        if self._hiding is not None:
            attributes, events = self._hidden(span, attributes, events)
        attributes = self._inline.without_payloads(attributes)
        events = [
            replace_event(each, each.name, self._inline.without_payloads(dict(each.attributes or {})))
            for each in events
        ]
        name, links, status = span.name, span.links, span.status
        mask = self.mask
        if mask is not None:
            attributes = _masked(mask, attributes)
            events = [
                replace_event(each, mask.name(each.name), _masked(mask, each.attributes or {})) for each in events
            ]
            links = [replace_link(each, _masked(mask, each.attributes)) if each.attributes else each for each in links]
            name = mask.text(str(name))
            if status.description:
                status = Status(status.status_code, mask.text(status.description))
        resource, scope = self._owners(span)
        return RedactedSpan(span, name, attributes, events, links, status, resource, scope)

    def _owners(self, span: ReadableSpan) -> tuple[Resource, InstrumentationScope | None]:
        """A span's resource and scope, each masked once."""
        resource, scope, mask = span.resource, span.instrumentation_scope, self.mask
        if mask is None:
            return resource, scope
        known = self._resources.get(id(resource))
        if known is None:
            known = resource, Resource(_masked(mask, resource.attributes), resource.schema_url)
            _keep(self._resources, id(resource), known)
        if scope is None or not scope.attributes:
            return known[1], scope
        known_scope = self._scopes.get(id(scope))
        if known_scope is None:
            masked = InstrumentationScope(scope.name, scope.version, scope.schema_url, _masked(mask, scope.attributes))
            known_scope = scope, masked
            _keep(self._scopes, id(scope), known_scope)
        return known[1], known_scope[1]

    def _hidden(
        self, span: ReadableSpan, attributes: dict[str, Any], events: Sequence[Event]
    ) -> tuple[dict[str, Any], list[Event]]:
        from mlflow_otlp_exporter._internal.enrichment.enricher import read_span  # see __init__

        kind = read_span(span).kind
        wishes = self._hiding.wishes(kind, attributes)
        kept, gone = self._hiding.events(events, kind, wishes)
        attributes = self._hiding.attributes(attributes, wishes)
        for side in gone:
            attributes.setdefault(f"{side}.value", REDACTED)
        return attributes, kept


def _keep(known: dict[int, T], key: int, value: T) -> None:
    if len(known) >= _MOST_OWNERS:
        known.clear()
    known[key] = value


def _masked(mask: Mask, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {mask.name(key): mask.value(str(key), value) for key, value in attributes.items()}
