"""Readers of other packages: loaded once, in the order of their names, and each fault costs only its own reader."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter import readers
from mlflow_otlp_exporter._internal import installed_readers
from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan
from mlflow_otlp_exporter._internal.installed_readers import GROUP, ExtensibleEnricher, InstalledReaders
from mlflow_otlp_exporter.readers import Dialect, Kind, Message, NormalizedSpan, Part, Reader, SpanView, Usage
from mlflow_otlp_exporter.testing import read_attributes, recording, using_readers
from support.spans import provider

ATTRIBUTES = {
    "acme.user": "ada",
    "input.value": "own input",
    "openinference.span.kind": "CHAIN",
}
CHAT = (Message("user", (Part("text", "Rain?"),)),)


class Module:
    """What entry points name: readers, and values that are none."""

    good = Dialect("Good", frozenset({"acme"}), {"user": ("acme.user",)})
    second = Reader("Second", frozenset({"acme"}), lambda _: NormalizedSpan(user="second", session="s-2"))
    both: tuple[Any, ...] = (good, second)
    number = 3
    text_prefixes = Reader("Text", "acme", lambda _: None)  # type: ignore[arg-type]


@pytest.fixture(name="install")
def install_entry_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    loaded: list[str] = []

    class Point(EntryPoint):
        def load(self) -> Any:
            loaded.append(self.name)
            if not hasattr(Module, self.value):
                raise ImportError("no such module: with a private text")
            return getattr(Module, self.value)

    def install(names: Mapping[str, str], *more: tuple[str, str]) -> list[str]:
        points = [Point(name, value, GROUP) for name, value in (*names.items(), *more)]
        monkeypatch.setattr(installed_readers, "entry_points", lambda group: points if group == GROUP else [])
        monkeypatch.setattr(InstalledReaders, "are_loaded", False)
        return loaded

    yield install
    InstalledReaders.use(())


def enrich(attributes: Mapping[str, Any] = ATTRIBUTES) -> Mapping[str, Any]:
    (enriched,) = ExtensibleEnricher().enrich(make_spans(attributes))
    assert isinstance(enriched, EnrichedSpan)
    return enriched.attributes


def make_spans(attributes: Mapping[str, Any]) -> Sequence[ReadableSpan]:
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        tracer_provider.get_tracer("acme").start_span("acme", attributes=attributes).end()
    return memory.get_finished_spans()


def test_installed_readers_are_loaded_at_the_first_span_and_once(install: Any) -> None:
    loaded = install({"b": "second", "a": "good"}, ("a", "good"))
    enricher = ExtensibleEnricher()
    assert loaded == []
    for _ in range(2):
        (enriched,) = enricher.enrich(make_spans(ATTRIBUTES))
        assert isinstance(enriched, EnrichedSpan)
        # In the order of names, of which one is there twice; the second adds what the first does not say.
        assert (enriched.attributes["user.id"], enriched.attributes["session.id"]) == ("ada", "s-2")
    assert enrich()["user.id"] == "ada"
    assert loaded == ["a", "b"]


def test_installed_readers_do_not_replace_what_own_readers_read(install: Any) -> None:
    install({"late": "both"})
    Module.both = (Reader("Wrong", frozenset({"acme"}), lambda _: NormalizedSpan(kind=Kind.TOOL, input="wrong")),)
    try:
        attributes = enrich()
    finally:
        Module.both = (Module.good, Module.second)
    assert (attributes["mlflow.spanType"], attributes["input.value"]) == ("CHAIN", "own input")


def test_unusable_entry_points_cost_only_themselves(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    install({"a": "missing", "b": "number", "c": "text_prefixes", "d": "good"})
    assert enrich()["user.id"] == "ada"
    assert [record.getMessage() for record in caplog.records] == [
        "The reader a (missing) of an installed package is not used: ImportError [MLO-718]",
        "The reader b (number) of an installed package is not used: expected a Reader, a Dialect or a list [MLO-718]",
        "The reader c (text_prefixes) of an installed package is not used: prefixes has to be a set of texts [MLO-718]",
    ]


def raise_error(_: SpanView) -> NormalizedSpan:
    raise RuntimeError("Rain?")


def change_span(span: SpanView) -> None:
    span.attributes["acme.user"] = "changed"  # type: ignore[index]


def be_slow(_: SpanView) -> None:
    sum(range(10_000_000))


make: Any = NormalizedSpan
make_usage: Any = Usage
BROKEN: dict[str, tuple[Any, str]] = {
    "raises": (raise_error, "RuntimeError was raised"),
    "changes the span": (change_span, "TypeError was raised"),
    "returns a text": (lambda _: "text", "it returned str, not NormalizedSpan"),
    "returns no messages": (
        lambda _: make(input_messages=("text",)),
        "it returned input_messages of a wrong type",
    ),
    "returns no number": (lambda _: make(usage=make_usage(input="12")), "it returned usage of a wrong type"),
    "returns a boolean": (lambda _: make(usage=make_usage(input=True)), "it returned usage of a wrong type"),
    "returns no text": (lambda _: make(session=object()), "it returned session of a wrong type"),
    "returns an object": (lambda _: NormalizedSpan(output=object()), "it returned output of a wrong type"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_reader_loses_its_result_is_logged_once_and_disabled(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    read, reason = BROKEN[case]
    calls = list[SpanView]()

    def count(span: SpanView) -> Any:
        calls.append(span)
        return read(span)

    with using_readers(Reader("Broken", frozenset({"acme"}), count), Module.good):
        assert [enrich()["user.id"] for _ in range(12)] == ["ada"] * 12
    assert len(calls) == 10
    assert [record.getMessage() for record in caplog.records] == [
        f"The reader of a test of an installed package failed: {reason} [MLO-718]",
        f"The reader of a test of an installed package is not called again: {reason} [MLO-718]",
    ]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_slow_reader_is_logged_and_its_result_is_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed_readers, "_SLOW_SECONDS", -1.0)
    with using_readers(Module.good):
        assert [enrich()["user.id"] for _ in range(10)] == ["ada"] * 10
        assert "user.id" not in enrich()
    assert "it takes 0.0 s for a span" in caplog.text
    assert len(caplog.records) == 2


def test_failures_in_a_row_are_counted_from_the_last_success() -> None:
    results: list[Any] = [*[RuntimeError()] * 9, NormalizedSpan(), *[RuntimeError()] * 9, NormalizedSpan(user="ada")]

    def read(_: SpanView) -> Any:
        result = results.pop(0)
        if isinstance(result, RuntimeError):
            raise result
        return result

    with using_readers(Reader("Flaky", frozenset({"acme"}), read)):
        assert [enrich().get("user.id") for _ in range(20)] == [None] * 19 + ["ada"]


def test_result_of_every_public_type_is_accepted() -> None:
    normalized = NormalizedSpan(
        kind=Kind.CHAT_MODEL,
        input_messages=CHAT,
        output={"answer": ["yes", 1.5, None]},
        tools=(readers.ToolDefinition("search", parameters={"type": "object"}),),
        documents=(readers.Document("text", score=1),),
        usage=Usage(input=1),
        cost=readers.Cost(total=1),
        prompt=readers.Prompt("p"),
        tags=("a",),
        metadata={"a": 1},
        wraps_calls=True,
    )
    reader = Reader("Full", frozenset({"acme"}), lambda _: normalized)
    assert read_attributes(reader, {"acme.x": 1}) == normalized


def test_read_attributes_raises_what_an_application_would_only_log() -> None:
    with pytest.raises(RuntimeError, match="Rain"):
        read_attributes(Reader("Broken", frozenset({"acme"}), raise_error), {})
    with pytest.raises(TypeError, match="it returned usage of a wrong type"):
        read_attributes(Reader("Broken", frozenset({"acme"}), BROKEN["returns no number"][0]), {})


def test_using_readers_ends_with_its_block() -> None:
    with using_readers(Module.good):
        assert enrich()["user.id"] == "ada"
    assert "user.id" not in enrich()


def test_names_of_the_public_module_are_pinned() -> None:
    """Who changes these raises VERSION, unless old readers still work, and says so in CHANGELOG.md."""
    assert readers.VERSION == 1
    assert " ".join(readers.__all__) == (
        "VERSION Cost Dialect Document EventView Kind Message NormalizedSpan Part Prompt Reader SpanView ToolCall "
        "ToolDefinition Usage parse_float parse_int parse_structured parse_text parse_texts read_cost read_dialect "
        "read_documents read_messages read_tools read_usage table_reader unflatten"
    )
    public = (readers.Dialect, readers.NormalizedSpan, readers.Message, readers.Usage, readers.SpanView, readers.Reader)
    assert {model.__name__: " ".join(model._fields) for model in public} == {
        "Dialect": "name prefixes fields kinds metadata_prefixes ignored_metadata envelopes find_kind complete",
        "NormalizedSpan": "kind trace_name input_messages output_messages transcript input output tools tool_name "
        "tool_description tool_call_id documents query input_documents top_k embedded_texts usage cost request_model "
        "response_model provider invocation_parameters finish_reason prompt session user tags metadata agent_name "
        "error_type response_id wraps_calls covered_keys",
        "Message": "role parts tool_calls tool_call_id name reasoning",
        "Usage": "input output total cache_read cache_write reasoning input_audio output_audio cache_write_1h",
        "SpanView": "name scope attributes events",
        "Reader": "name prefixes read fields",
    }


def test_module_of_readers_documents_its_group() -> None:
    assert GROUP in str(readers.__doc__)
    assert Path(readers.__file__).name == "readers.py"


UNLISTED_NAMES = {"acme.op": "chat", "acme.in": "private question", "acme.out": "private answer", "acme.id": "7"}
TABLE = {"kind": ("acme.op",), "input": ("acme.in",), "output": ("acme.out",)}


@pytest.mark.parametrize(
    "reader",
    [
        Dialect("Acme", frozenset({"acme"}), TABLE),
        Reader("Acme", frozenset({"acme"}), lambda _: NormalizedSpan(kind=Kind.CHAIN), TABLE),
    ],
    ids=["table", "function"],
)
@pytest.mark.parametrize(("hidden", "remaining"), [("INPUTS", "private answer"), ("OUTPUTS", "private question")])
def test_attributes_that_an_installed_reader_declares_are_hidden_from_the_first_span(
    reader: Any, hidden: str, remaining: str, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Module, "good", reader)
    monkeypatch.setenv(f"OPENINFERENCE_HIDE_{hidden}", "true")
    install({"acme": "good"})
    with recording() as recorded, trace.get_tracer("acme").start_as_current_span("acme", attributes=UNLISTED_NAMES):
        pass
    text = str(recorded.spans[0].attributes)
    assert [content for content in ("private question", "private answer") if content in text] == [remaining]


@pytest.mark.parametrize("fields", [("acme.in",), {"input": "acme.in"}, {"input": (1,)}])
def test_installed_reader_with_malformed_fields_is_not_used(
    fields: Any, install: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Module, "good", Reader("Acme", frozenset({"acme"}), lambda _: None, fields))
    install({"acme": "good"})
    enrich()
    assert "fields has to be a mapping from fields to keys of attributes" in caplog.text
