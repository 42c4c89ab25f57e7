"""Portions and requests: whole traces, up to a size, and few roots where they are linked to a run."""

from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, trace_context
from mlflow_otlp_exporter._internal.delivery.batcher import batch_by_size, iter_chunks
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, Framing
from support.scripted_server import ScriptedServer

NOTHING = Framing(b"", b"")


def span(trace: int, size: int, number: int = 0, *, root: bool = False) -> EncodedSpan:
    return EncodedSpan(trace, number, root, NOTHING, NOTHING, number.to_bytes(4, "big") + b"x" * (size - 4))


def sizes(batches: list[list[EncodedSpan]]) -> list[list[int]]:
    return [[each.trace_id for each in batch] for batch in batches]


def test_batch_by_size_groups_whole_traces_up_to_max_bytes() -> None:
    spans = [span(1, 40), span(2, 40), span(1, 40), span(3, 40)]
    assert sizes(list(batch_by_size(spans, 120))) == [[1, 1, 2], [3]]
    assert sizes(list(batch_by_size(spans, 100))) == [[1, 1], [2, 3]]
    assert sizes(list(batch_by_size(spans, 0))) == [[1, 1, 2, 3]]


def test_batch_by_size_splits_large_trace_but_not_span() -> None:
    spans = [span(1, 40), span(1, 40), span(1, 300), span(1, 40)]
    assert sizes(list(batch_by_size(spans, 100))) == [[1, 1], [1], [1]]


def test_batch_by_size_with_run_limits_root_spans_to_100() -> None:
    spans = [each for trace in range(250) for each in (span(trace, 10), span(trace, 10, root=True))]
    counts = [sum(each.is_root for each in batch) for batch in batch_by_size(spans, 0, has_run=True)]
    assert counts == [100, 100, 50]
    assert [len(batch) for batch in batch_by_size(spans, 0)] == [500]


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(4, 200), st.booleans()), max_size=60),
    st.integers(0, 300),
    st.booleans(),
)
def test_batch_by_size_keeps_every_span_once_in_order(
    shapes: list[tuple[int, int, bool]], size: int, linked: bool
) -> None:
    spans = [span(trace, length, number, root=root) for number, (trace, length, root) in enumerate(shapes)]
    batches = list(batch_by_size(spans, size, has_run=linked))
    flat = [each for batch in batches for each in batch]
    assert sorted(flat) == sorted(spans)
    for trace in range(1, 9):
        assert [each for each in flat if each.trace_id == trace] == [each for each in spans if each.trace_id == trace]
    for batch in batches:
        assert batch
        assert not size or len(batch) == 1 or sum(len(each.body) for each in batch) <= size


def whole_trace(trace: int, count: int) -> list[ReadableSpan]:
    return [ReadableSpan(str(each), SpanContext(trace, each + 1, is_remote=False)) for each in range(count)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), max_size=8))
def test_iter_chunks_returns_whole_traces_of_minimal_size(counts: list[int]) -> None:
    spans = [each for trace, count in enumerate(counts, 1) for each in whole_trace(trace, count)]
    expected = list(spans)
    found: list[ReadableSpan] = []
    for portion in iter_chunks(spans):
        found += portion
        assert len(spans) == len(expected) - len(found)  # what was taken is in the list no more
        traces = [each.context.trace_id for each in portion]
        assert not spans or spans[0].context.trace_id != traces[-1]
        assert len(portion) - traces.count(traces[-1]) < 64
        assert len(portion) >= 64 or not spans
    assert found == expected


def test_build_and_clear_frees_spans_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9")
    pipeline = exporter._pipeline
    assert pipeline is not None
    spans = [each for trace in range(1, 101) for each in whole_trace(trace, 10)]
    expected = pipeline.batcher.build(tuple(spans))[0]
    alive, counts, encode = WeakSet(spans), list[int](), pipeline.batcher.encoder.encode

    def counting(*arguments: Any, **more: Any) -> EncodedSpan:
        counts.append(len(alive))
        return encode(*arguments, **more)

    monkeypatch.setattr(pipeline.batcher.encoder, "encode", counting)
    assert pipeline.batcher.build_and_clear(spans) == expected
    assert (len(counts), counts[0], spans) == (1000, 1000, [])
    assert counts[-1] < 500
    exporter.shutdown(0)


Came = tuple[dict[str, str], dict[str, str]]


def sent(server: ScriptedServer, resource: dict[str, Any], **arguments: Any) -> list[Came]:
    """Resource attributes and headers of what came."""
    provider = TracerProvider(resource=Resource(resource), shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(**arguments)))
    tracer = provider.get_tracer("tests")
    tracer.start_span("by default").end()
    with trace_context(workspace="team-b", experiment_id=9):
        tracer.start_span("elsewhere").end()
    provider.shutdown()
    found = [
        (
            {each.key: each.value.string_value for each in came.resource.attributes},
            {name: value for name, value in request.headers.items() if name.startswith("x-mlflow-")},
        )
        for request in server.to("/v1/traces")
        for came in request.export_request().resource_spans
    ]
    return sorted(found, key=lambda each: each[1].get("x-mlflow-workspace", ""))


def test_resource_attributes_match_headers_towards_collector(scripted_server: ScriptedServer) -> None:
    chosen: dict[str, Any] = {"workspace": "team-a", "experiment_id": 7}
    found = sent(scripted_server, {"service.name": "bot"}, endpoint=scripted_server.traces_url, **chosen)
    assert found == [
        (
            {"service.name": "bot", "mlflow.workspace": "team-a", "mlflow.experiment_id": "7"},
            {"x-mlflow-workspace": "team-a", "x-mlflow-experiment-id": "7"},
        ),
        (
            {"service.name": "bot", "mlflow.workspace": "team-b", "mlflow.experiment_id": "9"},
            {"x-mlflow-workspace": "team-b", "x-mlflow-experiment-id": "9"},
        ),
    ]


def test_destination_of_trace_overrides_resource(scripted_server: ScriptedServer) -> None:
    resource = {"mlflow.workspace": "team-a", "mlflow.experiment_id": "7", "service.name": "bot"}
    found = sent(scripted_server, resource, endpoint=scripted_server.traces_url)
    assert [attributes["mlflow.workspace"] for attributes, _ in found] == ["team-a", "team-b"]
    assert all(len(attributes) == 3 for attributes, _ in found)


@pytest.mark.parametrize("name", ["endpoint", "tracking_uri"])
def test_resource_is_unchanged_without_destination_or_towards_mlflow(
    name: str, scripted_server: ScriptedServer
) -> None:
    chosen: dict[str, Any] = {"endpoint": scripted_server.traces_url}
    if name == "tracking_uri":
        chosen = {"tracking_uri": scripted_server.url, "workspace": "team-a", "experiment_id": 7}
    found = [attributes for attributes, _ in sent(scripted_server, {"service.name": "bot"}, **chosen)]
    assert found[0] == {"service.name": "bot"}
    assert (len(found[1]) == 1) == (name == "tracking_uri")
