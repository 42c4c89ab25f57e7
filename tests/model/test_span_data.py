"""Copies of spans, events and links: they tell what the SDK's limits have cost the originals."""

from opentelemetry.trace import Link, SpanContext

from mlflow_otlp_exporter._internal.model.span_data import CountedSpan, Dropped, dropped_from, event_like, link_like
from support.spans import LIMITED, limited


def test_copies_tell_what_the_originals_do() -> None:
    span = limited()
    (event,), (link,) = span.events, span.links
    copies = event_like(event, "other", {"a": 1}), link_like(link, {"b": 2})
    assert (*dropped_from(span), *(each.dropped_attributes for each in copies)) == LIMITED
    assert [dict(each.attributes or {}) for each in copies] == [{"a": 1}, {"b": 2}]
    assert (copies[0].name, copies[0].timestamp, copies[1].context) == ("other", event.timestamp, link.context)
    assert dropped_from(CountedSpan(dropped_from(span), name="a")) == dropped_from(span)
    assert dropped_from(CountedSpan(Dropped(), name="a")) == (0, 0, 0)


def test_links_that_do_not_count_have_lost_nothing() -> None:
    class Other:
        context = SpanContext(1, 2, is_remote=False)

    other: Link = Other()  # type: ignore[assignment]
    assert link_like(other, {}).dropped_attributes == 0
