"""Batches and chunks of whole traces, and resource attributes that name the destination."""

from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, trace_context, update_trace
from mlflow_otlp_exporter._internal.delivery.batcher import batch_by_size, iter_chunks
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, Framing
from support.scripted_server import ScriptedServer
from support.spans import make_spans

NOTHING = Framing(b"", b"")


def make_span(trace: int, size: int, number: int = 0, *, root: bool = False) -> EncodedSpan:
    return EncodedSpan(trace, number, root, NOTHING, NOTHING, number.to_bytes(4, "big") + b"x" * (size - 4))


def sizes(batches: list[list[EncodedSpan]]) -> list[list[int]]:
    return [[span.trace_id for span in batch] for batch in batches]


def test_batch_by_size_groups_whole_traces_up_to_max_bytes() -> None:
    spans = [make_span(1, 40), make_span(2, 40), make_span(1, 40), make_span(3, 40)]
    assert sizes(list(batch_by_size(spans, 120))) == [[1, 1, 2], [3]]
    assert sizes(list(batch_by_size(spans, 100))) == [[1, 1], [2, 3]]
    assert sizes(list(batch_by_size(spans, 0))) == [[1, 1, 2, 3]]


def test_batch_by_size_splits_large_trace_but_not_span() -> None:
    spans = [make_span(1, 40), make_span(1, 40), make_span(1, 300), make_span(1, 40)]
    assert sizes(list(batch_by_size(spans, 100))) == [[1, 1], [1], [1]]


def test_batch_by_size_with_run_limits_root_spans_to_100() -> None:
    spans = [span for trace in range(250) for span in (make_span(trace, 10), make_span(trace, 10, root=True))]
    counts = [sum(span.is_root for span in batch) for batch in batch_by_size(spans, 0, has_run=True)]
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
    spans = [make_span(trace, length, number, root=root) for number, (trace, length, root) in enumerate(shapes)]
    batches = list(batch_by_size(spans, size, has_run=linked))
    flat = [span for batch in batches for span in batch]
    assert sorted(flat) == sorted(spans)
    for trace in range(1, 9):
        assert [span for span in flat if span.trace_id == trace] == [span for span in spans if span.trace_id == trace]
    for batch in batches:
        assert batch
        assert not size or len(batch) == 1 or sum(len(span.body) for span in batch) <= size


def make_trace(trace: int, count: int) -> list[ReadableSpan]:
    resource = Resource({})  # without one, each span would run the resource detectors
    return [
        ReadableSpan(str(number), SpanContext(trace, number + 1, is_remote=False), resource=resource)
        for number in range(count)
    ]


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), max_size=8))
def test_iter_chunks_returns_whole_traces_of_minimal_size(counts: list[int]) -> None:
    spans = [span for trace, count in enumerate(counts, 1) for span in make_trace(trace, count)]
    expected = list(spans)
    popped: list[ReadableSpan] = []
    for chunk in iter_chunks(spans):
        popped += chunk
        assert len(spans) == len(expected) - len(popped)  # popped spans are removed from the list
        traces = [span.context.trace_id for span in chunk]
        assert not spans or spans[0].context.trace_id != traces[-1]
        assert len(chunk) - traces.count(traces[-1]) < 32
        assert len(chunk) >= 32 or not spans
    assert popped == expected


def test_build_and_clear_frees_spans_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9")
    pipeline = exporter._pipeline
    assert pipeline is not None
    spans = [span for trace in range(1, 101) for span in make_trace(trace, 10)]
    expected = pipeline.batcher.build(tuple(spans))[0]
    alive, counts, encode = WeakSet(spans), list[int](), pipeline.batcher.encoder.encode

    def count_and_encode(*arguments: Any, **keywords: Any) -> EncodedSpan:
        counts.append(len(alive))
        return encode(*arguments, **keywords)

    monkeypatch.setattr(pipeline.batcher.encoder, "encode", count_and_encode)
    assert pipeline.batcher.build_and_clear(spans) == expected
    assert (len(counts), counts[0], spans) == (1000, 1000, [])
    assert counts[-1] < 500
    exporter.shutdown(0)


ResourceAndHeaders = tuple[dict[str, str], dict[str, str]]


def export_two_traces(server: ScriptedServer, resource: dict[str, Any], **arguments: Any) -> list[ResourceAndHeaders]:
    """Resource attributes and headers of the requests."""
    provider = TracerProvider(resource=Resource(resource), shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(**arguments)))
    tracer = provider.get_tracer("tests")
    tracer.start_span("by default").end()
    with trace_context(workspace="team-b", experiment_id=9):
        tracer.start_span("elsewhere").end()
    provider.shutdown()
    pairs = [
        (
            {attribute.key: attribute.value.string_value for attribute in resource_spans.resource.attributes},
            {name: value for name, value in request.headers.items() if name.startswith("x-mlflow-")},
        )
        for request in server.to("/v1/traces")
        for resource_spans in request.export_request().resource_spans
    ]
    return sorted(pairs, key=lambda pair: pair[1].get("x-mlflow-workspace", ""))


def test_resource_attributes_match_headers_towards_collector(scripted_server: ScriptedServer) -> None:
    arguments: dict[str, Any] = {"workspace": "team-a", "experiment_id": 7}
    pairs = export_two_traces(
        scripted_server, {"service.name": "bot"}, endpoint=scripted_server.traces_url, **arguments
    )
    assert pairs == [
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
    pairs = export_two_traces(scripted_server, resource, endpoint=scripted_server.traces_url)
    assert [attributes["mlflow.workspace"] for attributes, _ in pairs] == ["team-a", "team-b"]
    assert all(len(attributes) == 3 for attributes, _ in pairs)


@pytest.mark.parametrize("name", ["endpoint", "tracking_uri"])
def test_resource_is_unchanged_without_destination_or_towards_mlflow(
    name: str, scripted_server: ScriptedServer
) -> None:
    arguments: dict[str, Any] = {"endpoint": scripted_server.traces_url}
    if name == "tracking_uri":
        arguments = {"tracking_uri": scripted_server.url, "workspace": "team-a", "experiment_id": 7}
    pairs = export_two_traces(scripted_server, {"service.name": "bot"}, **arguments)
    assert pairs[0][0] == {"service.name": "bot"}
    assert (len(pairs[1][0]) == 1) == (name == "tracking_uri")


class HostileText(str):
    """A text whose methods raise, as a lazily translated one can."""

    __slots__ = ()

    def __len__(self) -> int:
        raise GeneratorExit

    def __eq__(self, other: object) -> bool:
        raise GeneratorExit

    def encode(self, *arguments: str) -> bytes:
        raise GeneratorExit

    __hash__ = str.__hash__


@pytest.mark.parametrize("mask", [None, ["email"]])
@pytest.mark.parametrize("key", ["input.value", "app", "openinference.span.kind", "mlflow.experiment"])
def test_build_with_values_whose_methods_raise_drops_their_span_only(mask: list[str] | None, key: str) -> None:
    spans = make_spans("good", "bad", "other")
    spans[1]._attributes = {key: HostileText("x")}
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", mask=mask)
    pipeline = exporter._pipeline
    assert pipeline is not None
    batches, failed_count = pipeline.batcher.build(spans)
    exporter.shutdown(0)
    assert (failed_count, sum(len(encoded) for _, encoded in batches)) == (1, 2)


@pytest.mark.parametrize("mask", [None, ["email"]])
def test_end_of_span_with_values_whose_methods_raise_raises_nothing(mask: list[str] | None, tmp_path: Path) -> None:
    exporter = MLflowSpanExporter(
        endpoint="http://127.0.0.1:9/v1/traces", mask=mask, spool=True, spool_dir=tmp_path, durability="every-span"
    )
    provider = TracerProvider(shutdown_on_exit=False)
    processor = MLflowSpanProcessor(exporter)
    provider.add_span_processor(processor)
    span = provider.get_tracer("app").start_span("span")
    span.set_attribute("input.value", HostileText("x"))
    span.end()
    processor.shutdown(0)
    assert exporter.stats().dropped == 1


@pytest.mark.parametrize("enrich", [False, True])
def test_session_of_the_application_replaces_that_of_frameworks(scripted_server: ScriptedServer, enrich: bool) -> None:
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id="1", enrich=enrich)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(exporter))
    tracer = provider.get_tracer("framework")
    with tracer.start_as_current_span("root") as root:
        with tracer.start_as_current_span("below", attributes={"gen_ai.conversation.id": "thread"}):
            update_trace(session="s-42")
        with tracer.start_as_current_span("without"):
            pass
        root.set_attribute("session.id", "thread")
    with trace_context(session="s-43"), tracer.start_as_current_span("other trace"):
        pass
    provider.shutdown()
    spans = {span.name: span for request in scripted_server.to("/v1/traces") for span in request.spans()}
    attributes = {name: {item.key: item.value.string_value for item in span.attributes} for name, span in spans.items()}
    assert [attributes[name]["session.id"] for name in ("root", "below", "other trace")] == ["s-42", "s-42", "s-43"]
    assert "mlflow.trace.session" not in attributes["root"]
    assert enrich or "session.id" not in attributes["without"]
