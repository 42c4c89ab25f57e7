"""How a refused request is cut, so that in few requests the culprit is alone and everything else has landed."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_otlp_exporter._encoder import EncodedSpan


def halves(spans: Sequence[EncodedSpan]) -> tuple[list[EncodedSpan], list[EncodedSpan]]:
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
