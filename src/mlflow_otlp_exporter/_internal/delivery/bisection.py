"""How a refused request is cut, so that in few requests the culprit is alone and everything else has landed."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan


def split_spans(spans: Sequence[EncodedSpan]) -> tuple[list[EncodedSpan], list[EncodedSpan]]:
    """Cuts between traces as near to the middle as can be; a single trace between its spans.

    Args:
        spans: Two or more.
    """
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    if len(traces) == 1:
        return list(spans[: len(spans) // 2]), list(spans[len(spans) // 2 :])
    groups = list(traces.values())
    middle = _middle([sum(len(span.body) for span in group) for group in groups])
    left, right = groups[:middle], groups[middle:]
    return [span for group in left for span in group], [span for group in right for span in group]


def _middle(sizes: Sequence[int]) -> int:
    """Where to cut, by bytes, with at least one item on either side."""
    total, passed = sum(sizes), 0
    for index, size in enumerate(sizes):
        if index and passed + size / 2 >= total / 2:
            return index
        passed += size
    return len(sizes) - 1


def bisect(shipment: ExportRequest, search: Bisection, chance: float) -> tuple[ExportRequest, ExportRequest]:
    """The halves of a shipment that has the culprit; the half that was beside it is put aside.

    Args:
        shipment: Of two or more spans.
        search: The search that they are parts of.
        chance: A random number from 0 to 1: which half goes first.
    """
    _take_sibling(shipment, search)
    first, second = (
        ExportRequest(shipment.destination, spans, shipment.origin, uncertain=shipment.uncertain, search=search)
        for spans in split_spans(shipment.spans)
    )
    if chance < 0.5:
        # At random, or a culprit at either end would keep the search from all that passes in between.
        first, second = second, first
    first.sibling = second
    return first, second


def next_half(shipment: ExportRequest) -> list[ExportRequest]:
    """What follows in a search when one of its parts has passed: the culprit is in the other half, or nowhere."""
    if shipment.guilty:
        return merge_deferred(shipment)
    if shipment.sibling is not None:
        shipment.sibling.guilty = True
    return []


def merge_deferred(shipment: ExportRequest) -> list[ExportRequest]:
    """What a search has put aside, as one shipment, now that the culprit is alone."""
    search, shipment.search = shipment.search, None
    if search is None:
        return []
    _take_sibling(shipment, search)
    rest, search.rest = search.rest, []
    if not rest:
        return []
    return [ExportRequest(shipment.destination, rest, shipment.origin, uncertain=search.uncertain, found_in=search)]


def _take_sibling(shipment: ExportRequest, search: Bisection) -> None:
    """Puts the other half aside; whoever has it in a queue finds it empty."""
    sibling, shipment.sibling = shipment.sibling, None
    if sibling is not None:
        search.rest += sibling.spans
        search.uncertain = search.uncertain or sibling.uncertain
        sibling.spans = []
