"""Copies of spans, events and links keep the dropped counts of the originals."""

from opentelemetry.trace import Link, SpanContext

from mlflow_otlp_exporter._internal.model.span_data import (
    DroppedCounts,
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


def test_replace_link_without_count_has_no_dropped_attributes() -> None:
    class Other:
        context = SpanContext(1, 2, is_remote=False)

    other: Link = Other()  # type: ignore[assignment]
    assert replace_link(other, {}).dropped_attributes == 0
