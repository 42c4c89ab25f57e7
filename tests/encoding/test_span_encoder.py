"""The encoder: equal to upstream's for everything that upstream can encode, and valid for other values."""

import enum
import functools
import math
import threading
import tracemalloc
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from mlflow_otlp_exporter._internal.encoding.sanitizer import REPAIRED_ATTRIBUTE, mark_nested_texts
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import LARGE_TEXT_BYTES, LargeBody, Utf8Text, encode_request
from support.spans import make_spans

TRACE_IDS, SPAN_IDS = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
TIMES = st.integers(0, 2**63 - 1)
TEXTS = st.text(max_size=300) | st.text(alphabet="aé漢😀\x00\n", max_size=40)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=True, allow_infinity=True)
    | TEXTS
    | st.binary(max_size=200)
)
# None and mappings inside values: upstream encodes them since 1.45; older versions drop the attribute.
VALUES = st.recursive(
    SCALARS | st.none(),
    lambda children: st.lists(children, max_size=4).map(tuple) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=10,
)
KEYS = st.text(min_size=1, max_size=200)
STATES = st.just(TraceState()) | st.just(TraceState([("vendor", "a=b"), ("other", "1")]))


def contexts(states: st.SearchStrategy[TraceState] = STATES) -> st.SearchStrategy[SpanContext]:
    flags = st.sampled_from([TraceFlags(0), TraceFlags(1)])
    return st.builds(SpanContext, TRACE_IDS, SPAN_IDS, st.booleans(), flags, states)


def can_be_encoded(value: Any) -> bool:
    """Whether this version of upstream encodes the value: 1.30 drops attributes with None."""
    if _upstream_knows_none():
        return True
    if isinstance(value, Mapping):
        return all(can_be_encoded(item) for item in value.values())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return all(can_be_encoded(item) for item in value)
    return value is not None


@functools.cache
def _upstream_knows_none() -> bool:
    probe = ReadableSpan("x", SpanContext(1, 1, False), attributes={"a": (None,)}, resource=Resource({}))
    return bool(encode_spans([probe]).resource_spans[0].scope_spans[0].spans[0].attributes)


ATTRIBUTES = st.dictionaries(KEYS, VALUES.filter(can_be_encoded), max_size=6)
# Without a trace state, which upstream omits from links; another test covers it.
LINKS = st.builds(Link, contexts(st.just(TraceState())), ATTRIBUTES)
EVENTS = st.builds(Event, TEXTS, ATTRIBUTES, TIMES)
STATUSES = st.builds(Status, st.just(StatusCode.ERROR), st.none() | TEXTS) | st.sampled_from(
    [Status(StatusCode.OK), Status(StatusCode.UNSET)]
)
RESOURCES = [Resource({}), Resource({"service.name": "bot", "n": 1}), Resource({"a": (1, 2)}, "https://schema/1")]
SCOPES = [None, InstrumentationScope("x"), InstrumentationScope("y", "1.0")]
SPANS = st.builds(
    ReadableSpan,
    name=TEXTS,
    context=contexts(),
    parent=st.none() | contexts(),
    resource=st.sampled_from(RESOURCES),
    attributes=ATTRIBUTES,
    events=st.lists(EVENTS, max_size=3),
    links=st.lists(LINKS, max_size=3),
    kind=st.sampled_from(SpanKind),
    status=STATUSES,
    start_time=TIMES | st.none(),
    end_time=TIMES | st.none(),
    instrumentation_scope=st.sampled_from(SCOPES),
)


def encode_with_ours(spans: Sequence[ReadableSpan], encoder: SpanEncoder | None = None) -> ExportTraceServiceRequest:
    encoder = encoder or SpanEncoder()
    return ExportTraceServiceRequest.FromString(encode_request([encoder.encode(span) for span in spans]))


def get_single_span(request: ExportTraceServiceRequest) -> Span:
    return request.resource_spans[0].scope_spans[0].spans[0]


def text_of(message: Any) -> str:
    # NaN is not equal to itself, also in protobuf; the texts are equal.
    return str(message)


@settings(max_examples=300, deadline=None)
@given(st.lists(SPANS, min_size=1, max_size=5))
def test_encode_equals_upstream(spans: list[ReadableSpan]) -> None:
    encoder = SpanEncoder()
    assert text_of(encode_with_ours(spans, encoder)) == text_of(encode_spans(spans))
    assert (encoder.repairs.repaired, encoder.repairs.left_out) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(SPANS, min_size=1, max_size=3))
def test_encode_with_warm_caches_is_unchanged(spans: list[ReadableSpan]) -> None:
    encoder = SpanEncoder()
    first = encode_request([encoder.encode(span) for span in spans])
    assert encode_request([encoder.encode(span) for span in spans]) == first


ODD_TEXTS = st.text(alphabet=st.characters(), max_size=20) | st.just("\ud800") | st.just("a\udfffb\ud83d\ude00")
ODD_VALUES = st.recursive(
    ODD_TEXTS | st.integers(-(2**80), 2**80) | st.just(object()) | st.just({1, 2}) | st.just(3j) | st.binary(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.integers() | ODD_TEXTS, children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(ODD_TEXTS, st.dictionaries(ODD_TEXTS, ODD_VALUES, max_size=4))
def test_encode_values_that_upstream_rejects_makes_a_valid_request(name: str, attributes: dict[str, Any]) -> None:
    malformed = ReadableSpan(
        name,
        SpanContext(1, 2, False),
        resource=Resource({}),
        attributes=attributes,
        events=[Event(name, attributes, -5)],
        links=[Link(SpanContext(3, 4, False), attributes)],
        status=Status(StatusCode.ERROR, name),
        start_time=2**70,
        end_time=-1,
    )
    good = ReadableSpan("good", SpanContext(5, 6, False), resource=Resource({}), attributes={"a": 1})
    result = encode_with_ours([malformed, good]).resource_spans[0].scope_spans[0].spans
    assert [len(result), result[1].name, result[1].attributes[0].value.int_value] == [2, "good", 1]
    assert (result[0].start_time_unix_nano, result[0].end_time_unix_nano) == (2**63 - 1, 0)


@pytest.mark.parametrize(
    ("start_time", "end_time", "expected"),
    [
        (1e18, 1e18 + 1024, (10**18, 10**18 + 1024)),  # of time.time() * 1e9
        (10**18, 1e18 + 1024, (10**18, 10**18 + 1024)),
        (-5, -1, (0, 0)),
        (10, 5, (10, 5)),
        (math.nan, math.inf, (0, 0)),
        ("soon", None, (0, 0)),
        (None, 2**64, (0, 2**63 - 1)),
        (True, 5.5, (1, 5)),
    ],
)
def test_encode_odd_times_makes_a_valid_span(start_time: Any, end_time: Any, expected: tuple[int, int]) -> None:
    odd = ReadableSpan("odd", SpanContext(1, 2, False), resource=Resource({}), start_time=start_time, end_time=end_time)
    (span,) = encode_with_ours([odd]).resource_spans[0].scope_spans[0].spans
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == expected


@pytest.mark.parametrize("key_length", [0, 1, 121, 122, 127, 128, 129, 16_379, 16_383, 16_384, 16_385, 2_097_152])
def test_encode_long_keys_and_values_round_trip(key_length: int) -> None:
    key = "k" * key_length
    values: list[Any] = [
        *("v" * size for size in (0, 1, 125, 126, 127, 128, 16_383, 16_384)),
        7,
        300,
        1.5,
        True,
        b"b",
        [1],
    ]
    for value in values:
        long = ReadableSpan("long", SpanContext(1, 2, False), resource=Resource({}), attributes={key: value})
        (span,) = encode_with_ours([long]).resource_spans[0].scope_spans[0].spans
        assert [attribute.key for attribute in span.attributes] == [key]
        if isinstance(value, str):
            assert span.attributes[0].value.string_value == value


class Color(enum.IntEnum):
    RED = 3


class Label(str, enum.Enum):
    A = "a"


class Weight(float):
    pass


CASES: list[tuple[Any, str]] = [
    (True, "bool_value: true"),
    (False, "bool_value: false"),
    (0, "int_value: 0"),
    (127, "int_value: 127"),
    (128, "int_value: 128"),
    (-1, "int_value: -1"),
    (2**63 - 1, "int_value: 9223372036854775807"),
    (-(2**63), "int_value: -9223372036854775808"),
    (1.5, "double_value: 1.5"),
    (math.inf, "double_value: inf"),
    (math.nan, "double_value: nan"),
    ("", 'string_value: ""'),
    (b"\x00", 'bytes_value: "\\000"'),
    (bytearray(b"a"), 'bytes_value: "a"'),
    (Color.RED, "int_value: 3"),
    (Label.A, 'string_value: "a"'),
    (Weight(2), "double_value: 2"),
    ((), "array_value { }"),
    ([1, "a"], 'array_value { values { int_value: 1 } values { string_value: "a" } }'),
    ({"a": None}, 'kvlist_value { values { key: "a" value { } } }'),
    (OrderedDict(a=1), 'kvlist_value { values { key: "a" value { int_value: 1 } } }'),
    (range(2), "array_value { values { int_value: 0 } values { int_value: 1 } }"),
    ("x" * 125, f'string_value: "{"x" * 125}"'),
    ("x" * 126, f'string_value: "{"x" * 126}"'),
    ("x" * 127, f'string_value: "{"x" * 127}"'),
    ("x" * 128, f'string_value: "{"x" * 128}"'),
    ("x" * 16_383, f'string_value: "{"x" * 16_383}"'),
    ("x" * 16_384, f'string_value: "{"x" * 16_384}"'),
    ("x" * 3_000_000, f'string_value: "{"x" * 3_000_000}"'),
]


@pytest.mark.parametrize(("value", "expected"), CASES, ids=lambda item: str(item)[:30])
def test_encode_value_of_each_type(value: Any, expected: str) -> None:
    encoder = SpanEncoder()
    (span,) = make_spans("a")
    body = encode_request([encoder.encode(span, {"key": value})])
    (attribute,) = get_single_span(ExportTraceServiceRequest.FromString(body)).attributes
    assert attribute.key == "key"
    assert " ".join(str(attribute.value).split()) == expected
    assert encoder.repairs.repaired == encoder.repairs.left_out == 0


REPAIRED: list[tuple[Any, str]] = [
    (2**63, "9223372036854775808"),
    (-(2**70), str(-(2**70))),
    (10**5000, hex(10**5000)),
    ("\ud83d\ude00", "😀"),
    ("a\ud800b", "a\ufffdb"),
]


@pytest.mark.parametrize(("value", "expected"), REPAIRED, ids=range(len(REPAIRED)))
def test_encode_unencodable_value_repairs_and_counts_it(value: Any, expected: str) -> None:
    encoder = SpanEncoder()
    body = encode_request([encoder.encode(make_spans("a")[0], {"key": value})])
    assert get_single_span(ExportTraceServiceRequest.FromString(body)).attributes[0].value.string_value == expected
    assert (encoder.repairs.repaired, encoder.repairs.left_out) == (1, 0)


def test_encode_span_with_nested_text_counts_its_other_values_once() -> None:
    encoder = SpanEncoder()
    encoder.encode(make_spans("a")[0], {"nested": "[" * 600, "lone": "\ud800", "object": object()})
    assert (encoder.repairs.repaired, encoder.repairs.left_out) == (1, 1)


def nest(depth: int) -> Any:
    value: Any = "leaf"
    for _ in range(depth):
        value = {"a": value}
    return value


def create_endless_list() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, 3j, [object()], {"a": object()}, nest(25), create_endless_list()], ids=range(7)
)
def test_encode_unsupported_value_omits_and_counts_it(value: Any) -> None:
    encoder = SpanEncoder()
    body = encode_request([encoder.encode(make_spans("a")[0], {"bad": value, "good": 1})])
    assert [item.key for item in get_single_span(ExportTraceServiceRequest.FromString(body)).attributes] == ["good"]
    assert (encoder.repairs.repaired, encoder.repairs.left_out) == (0, 1)


def test_encode_deepest_nesting_can_be_parsed() -> None:
    encoder = SpanEncoder()
    body = encode_request([encoder.encode(make_spans("a")[0], {"deep": nest(24)})])
    assert get_single_span(ExportTraceServiceRequest.FromString(body)).attributes[0].key == "deep"


def test_encode_with_attributes_replaces_those_of_the_span() -> None:
    (span,) = make_spans("a")
    body = encode_request([SpanEncoder().encode(span, {"x": "y"})])
    result = get_single_span(ExportTraceServiceRequest.FromString(body))
    assert [(item.key, item.value.string_value) for item in result.attributes] == [("x", "y")]


@given(TEXTS)
def test_encode_encoded_text_equals_that_of_text(text: str) -> None:
    span, encoder = make_spans("span")[0], SpanEncoder()
    encoded = encoder.encode(span, {"key": Utf8Text(text.encode())})
    assert encoded == encoder.encode(span, {"key": text})


WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))


@pytest.mark.parametrize("text", [*(space + "[" * 501 for space in WHITE_SPACE), "{" * 501, "[{" * 1_000_000])
def test_encode_deeply_nested_json_marks_it_as_text(text: str) -> None:
    span, encoder = make_spans("a")[0], SpanEncoder()
    marked = mark_nested_texts({"a": 1, "key": text, "b": 2})
    assert marked is not None
    expected = encode_request([encoder.encode(span, marked)])
    assert encode_request([encoder.encode(span, {"a": 1, "key": text, "b": 2})]) == expected
    encoded_text = Utf8Text(text.encode())
    assert encode_request([encoder.encode(span, {"a": 1, "key": encoded_text, "b": 2})]) == expected
    attributes = get_single_span(ExportTraceServiceRequest.FromString(expected)).attributes
    assert [attribute.key for attribute in attributes] == ["a", "key", "b", REPAIRED_ATTRIBUTE]
    assert attributes[1].value.string_value == "\u200b" + text


@pytest.mark.parametrize("text", ["[" * 500, "a" + "[" * 501, "[]" * 501, "[" * 499 + "]" * 1_000_000])
def test_encode_other_json_is_unchanged(text: str) -> None:
    encoded = SpanEncoder().encode(make_spans("a")[0], {"key": text})
    (attribute,) = get_single_span(ExportTraceServiceRequest.FromString(encode_request([encoded]))).attributes
    assert attribute.value.string_value == text


def test_encode_link_keeps_trace_state() -> None:
    linked = SpanContext(3, 4, True, trace_state=TraceState([("vendor", "1")]))
    span = ReadableSpan("a", SpanContext(1, 2, False), resource=Resource({}), links=[Link(linked)])
    (link,) = get_single_span(encode_with_ours([span])).links
    assert (link.trace_state, link.flags) == ("vendor=1", 0x300)


def test_encode_keeps_scope_attributes_and_schema_urls() -> None:
    scope = InstrumentationScope("x", "1", "https://schema/scope", {"a": 1})
    span = ReadableSpan(
        "a", SpanContext(1, 2, False), resource=Resource({}, "https://schema/resource"), instrumentation_scope=scope
    )
    result = encode_with_ours([span]).resource_spans[0]
    assert (result.schema_url, result.scope_spans[0].schema_url) == ("https://schema/resource", "https://schema/scope")
    assert result.scope_spans[0].scope.attributes[0].key == "a"


def test_encode_keeps_dropped_counts() -> None:
    limits = SpanLimits(max_attributes=1, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1)
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    links = [Link(SpanContext(item, 1, False), {"a": 1, "b": 2}) for item in (1, 2)]
    span = provider.get_tracer("x").start_span("a", attributes={"a": 1, "b": 2}, links=links)
    for name in "xy":
        span.add_event(name, {"a": 1, "b": 2})
    span.end()
    assert isinstance(span, ReadableSpan)
    provider.shutdown()
    assert text_of(encode_with_ours([span])) == text_of(encode_spans([span]))
    assert get_single_span(encode_with_ours([span])).dropped_attributes_count == 1


def test_encoder_caches_are_bounded() -> None:
    encoder = SpanEncoder()
    (span,) = make_spans("a")
    for number in range(5000):
        encoder.encode(span, {f"key {number}": 1, "long" * 50 + str(number): 1})
    for number in range(9000):
        encoder.encode(span, {f"key {number // 500}": "a" * (number % 500)})
    prefixes = encoder._prefixes[b"\x4a"]
    assert len(prefixes) <= 4096
    assert sum(map(len, prefixes.values())) <= 8192
    for number in range(600):
        encoder.encode(ReadableSpan("a", SpanContext(1, 2, False), resource=Resource({"n": number})))
    assert len(encoder._resources) <= 256


def test_encode_in_threads_is_unchanged() -> None:
    encoder, spans = SpanEncoder(), make_spans(*(f"span {number}" for number in range(50)))
    expected = [SpanEncoder().encode(span) for span in spans]
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(1 for _ in range(20) if [encoder.encode(span) for span in spans] != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_encode_large_texts_equals_upstream() -> None:
    text = "é" * LARGE_TEXT_BYTES
    span = ReadableSpan(
        "span",
        SpanContext(1, 1, False),
        resource=Resource({}),
        attributes={"a": 1, "large": text, "b": text, "c": "x"},
        events=[Event("event", {"large": text}, 1)],
    )
    assert isinstance(SpanEncoder().encode(span).body, LargeBody)
    assert encode_with_ours([span]) == encode_spans([span])


def test_value_of_10_mb_takes_its_encoded_size() -> None:
    span = ReadableSpan("span", SpanContext(1, 1, False), attributes={"input.value": "x" * 10_000_000})
    tracemalloc.start()
    try:
        body = SpanEncoder().encode(span).body
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.1 * len(body)
