"""Copies of spans, events and links keep the dropped counts of the originals."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext

from mlflow_otlp_exporter._internal.model.spans import (
    DroppedCounts,
    SpanCopy,
    SpanData,
    dropped_counts_of,
    replace_event,
    replace_link,
)
from support.spans import LIMITED, make_limited_span


def test_copies_keep_dropped_counts_of_the_originals() -> None:
    span = make_limited_span()
    (event,), (link,) = span.events, span.links
    copies = replace_event(event, "other", {"a": 1}), replace_link(link, {"b": 2})
    assert (*dropped_counts_of(span), *(copy.dropped_attributes for copy in copies)) == LIMITED
    assert [dict(copy.attributes or {}) for copy in copies] == [{"a": 1}, {"b": 2}]
    assert (copies[0].name, copies[0].timestamp, copies[1].context) == ("other", event.timestamp, link.context)
    assert dropped_counts_of(SpanData(dropped_counts_of(span), name="a")) == dropped_counts_of(span)
    assert dropped_counts_of(SpanData(DroppedCounts(), name="a")) == (0, 0, 0)


def test_span_copy_has_values_of_the_original_and_changes() -> None:
    span = make_limited_span()
    copy = SpanCopy(span, name="other")
    assert isinstance(copy, ReadableSpan)
    assert dropped_counts_of(copy) == dropped_counts_of(span)
    names = [name for name, value in vars(ReadableSpan).items() if isinstance(value, property)]
    assert len(names) >= 15
    for name in {*names} - {"name", "attributes", "instrumentation_info"}:
        assert getattr(copy, name) == getattr(span, name)
    assert (copy.name, copy.attributes, copy.get_span_context()) == ("other", dict(span.attributes or {}), span.context)


def test_replace_link_without_count_has_no_dropped_attributes() -> None:
    class Other:
        context = SpanContext(1, 2, is_remote=False)

    other: Link = Other()  # type: ignore[assignment]
    assert replace_link(other, {}).dropped_attributes == 0
