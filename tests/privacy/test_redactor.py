"""Spans after cleaning: what stays as it was, what cannot be cleaned, and the resource's attributes."""

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter, MLflowSpanProcessor
from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.describe import describe_settings
from mlflow_otlp_exporter._internal.config.parsers import HIDEABLE
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.model.span_data import EventData
from mlflow_otlp_exporter._internal.privacy import Redactor, resource_filter
from support.exported import sent
from support.planted import span
from support.spans import LIMITED, limited, lost


def hide(text: str) -> str:
    return text.replace("planted", "***")


def cleaner(environment: dict[str, str] | None = None, **arguments: Any) -> Redactor:
    settings = resolve(arguments, environment=environment or {})
    return Redactor(settings.privacy, ProblemLog(), base64_max_length=settings.base64_max_length)


@pytest.mark.parametrize("wishes", [{"mask": hide}, {"hide": ["inputs"]}], ids=["masked", "hidden"])
def test_all_else_of_a_span_stays_as_it_was(wishes: dict[str, Any]) -> None:
    before = limited()
    after = cleaner(**wishes).clean(before)
    assert after is not before
    for name in ("name", "parent", "resource", "kind", "instrumentation_scope", "start_time", "end_time"):
        assert getattr(after, name) == getattr(before, name)
    assert after.get_span_context() == before.get_span_context()
    assert dict(after.attributes or {}) == dict(before.attributes or {})
    assert [(each.name, dict(each.attributes or {}), each.timestamp) for each in after.events] == [
        (each.name, dict(each.attributes or {}), each.timestamp) for each in before.events
    ]
    assert [(each.context, dict(each.attributes or {})) for each in after.links] == [
        (each.context, dict(each.attributes or {})) for each in before.links
    ]
    assert lost(after) == LIMITED


def test_an_event_of_which_a_part_is_hidden_tells_what_it_has_lost() -> None:
    context = SpanContext(1, 2, is_remote=False)
    event = EventData("event", {"input.value": "planted", "other": 1}, 5, 4)
    made = cleaner(hide=["inputs"]).clean(ReadableSpan("a", context, resource=Resource({}), events=[event]))
    (after,) = made.events
    assert (after.attributes, after.timestamp, after.dropped_attributes) == (
        {"input.value": REDACTED, "other": 1},
        5,
        4,
    )


class _Broken(ReadableSpan):
    @property
    def events(self) -> tuple[Event, ...]:
        raise RuntimeError("planted")


def test_what_cannot_be_cleaned_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    good = span(({"a": "b"}, ()))
    broken = _Broken("planted", context=good.get_span_context())
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9", mask=hide)
    pipeline = exporter._pipeline
    assert pipeline is not None
    batches, count = pipeline.batcher.build([good, broken])
    assert ([len(batch) for _, batch in batches], count, exporter.stats().dropped) == ([1], 1, 1)
    assert "hidden content could not be removed" in caplog.text
    exporter.shutdown(0)


RESOURCE = Resource(
    {
        "service.name": "bot",
        "service.instance.id": "zebra-1",
        "process.pid": 1,
        "process.runtime.name": "zebra-2",
        "host.name": "zebra-3",
        "telemetry.sdk.name": "zebra-4",
        "telemetry.auto.version": "zebra-5",
        "deployment.environment": "production",
    }
)


@pytest.mark.parametrize(
    ("arguments", "variable", "left"),
    [
        ({}, None, {"1", "2", "3", "4", "5"}),
        ({"compact": True}, None, set()),
        ({"compact": True}, "host.*", {"1", "2", "4", "5"}),
        ({"compact": True}, "none", {"1", "2", "3", "4", "5"}),
        ({"compact": True}, "*.name, service.*", {"5"}),
    ],
)
def test_noisy_resource_attributes(
    arguments: dict[str, bool], variable: str | None, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_OTLP_DROP_RESOURCE", variable)
    body = sent([span(({}, ()), resource=RESOURCE)], **arguments)
    assert {number for number in "12345" if f"zebra-{number}".encode() in body} == left
    assert b"production" in body


def test_a_filter_only_where_there_is_something_to_do() -> None:
    assert resource_filter(()) is None
    filtered = resource_filter(("a.*", "b?"))
    assert filtered is not None
    assert filtered({"a.x": 1, "ax": 2, "b1": 3, "b": 4}) == {"ax": 2, "b": 4}
    # What OpenTelemetry calls an app whose service nobody named.
    assert filtered({"service.name": "unknown_service:python"}) == {}
    assert filtered({"service.name": "bot", "x": "unknown_service"}) == {"service.name": "bot", "x": "unknown_service"}


@pytest.mark.parametrize(
    ("environment", "hidden"),
    [
        ({}, ()),
        ({"OPENINFERENCE_HIDE_INPUTS": "true", "OPENINFERENCE_HIDE_LLM_TOOLS": "1"}, ("inputs", "llm_tools")),
        ({"OPENINFERENCE_HIDE_INPUTS": "false"}, ()),
        ({f"OPENINFERENCE_HIDE_{name.upper()}": "TRUE" for name in HIDEABLE}, HIDEABLE),
    ],
)
def test_what_is_hidden(environment: dict[str, str], hidden: tuple[str, ...]) -> None:
    assert resolve({}, environment=environment).privacy.hide == hidden


def test_settings_are_shown_with_their_sources() -> None:
    environment = {"OPENINFERENCE_HIDE_INPUTS": "true", "MLFLOW_OTLP_MASK": "email,keys"}
    rows = {name: (value, source) for name, value, source in describe_settings(resolve({}, environment=environment))}
    assert rows["hide"] == ("inputs", "environment variable OPENINFERENCE_HIDE_INPUTS")
    assert rows["mask"] == ("email,keys", "environment variable MLFLOW_OTLP_MASK")
    assert resolve({"hide": "outputs"}, environment=environment).privacy.hide == ("outputs",)


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [({"OPENINFERENCE_HIDE_INPUTS": "please"}, {}), ({}, {"hide": "everything"})],
)
def test_wishes_that_cannot_be_read_are_no_silent_no(environment: dict[str, str], arguments: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"HIDE_INPUTS|hide="):
        resolve(arguments, environment=environment)


def test_hidden_masked_and_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_OUTPUTS", "true")
    made = (
        {"openinference.span.kind": "CHAIN", "input.value": json.dumps({"q": "ada@x.org"}), "output.value": "o-zebra"},
        (),
    )
    body = sent([span(made)], mask="email")
    assert b"o-zebra" not in body
    assert b"[email]" in body
    assert b"__REDACTED__" in body


def test_masked_in_the_journal_of_every_span_too(tmp_path: Path) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "bot", "owner": "planted"}), shutdown_on_exit=False)
    settings = {"spool": True, "spool_dir": tmp_path, "durability": "every-span", "mask": hide}
    exporter = MLflowSpanExporter(tracking_uri="http://127.0.0.1:9", **settings)  # type: ignore[arg-type]  # as given
    provider.add_span_processor(MLflowSpanProcessor(exporter))
    provider.get_tracer("tests").start_span("planted", attributes={"a": "planted", "b": "harmless"}).end()
    lines = b"".join(path.read_bytes() for path in tmp_path.rglob("journal/*") if path.is_file())
    assert b"harmless" in lines
    assert b"planted" not in lines
    provider.shutdown()
