"""Spans to portions, and encoded ones to requests: whole traces, up to a size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan

# MLflow links a request's root traces to a run only up to this many, and answers 200 beyond (3.17.2).
_ROOTS_PER_RUN = 100
# Spans that are read and encoded at once; more only if a trace has more.
_PORTION = 64


def batch_by_size(
    spans: Sequence[EncodedSpan], size: int, *, linked_to_run: bool = False
) -> Iterator[list[EncodedSpan]]:
    """Groups spans into requests.

    MLflow pays 1.7 to 30 times more for a trace that arrives in pieces, so a trace is cut only if it is larger than a
    request may be.

    Args:
        spans: In the order in which they ended.
        size: Bytes that a request aims at; 0 for no limit. A single larger span is a request of its own.
        linked_to_run: Whether the requests name a run.
    """
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    batch: list[EncodedSpan] = []
    length = roots = 0
    for trace in traces.values():
        needed = sum(len(span.body) for span in trace)
        rooted = linked_to_run and any(span.is_root for span in trace)
        if batch and ((size and length + needed > size) or (rooted and roots == _ROOTS_PER_RUN)):
            yield batch
            batch, length, roots = [], 0, 0
        roots += rooted
        for span in trace:
            if size and batch and length + len(span.body) > size:
                yield batch
                batch, length, roots = [], 0, int(rooted)
            batch.append(span)
            length += len(span.body)
    if batch:
        yield batch


def iter_chunks(spans: list[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """Takes spans out of a list, a few whole traces at a time, so that what has been dealt with is not kept.

    Args:
        spans: In the order of their traces; empty at the end.
    """
    while spans:
        end = min(_PORTION, len(spans))
        while end < len(spans) and spans[end].context.trace_id == spans[end - 1].context.trace_id:
            end += 1
        taken = spans[:end]
        del spans[:end]
        yield taken
