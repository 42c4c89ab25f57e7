"""Redacted spans: unchanged fields, spans that cannot be redacted, resource attributes, settings."""

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
from mlflow_otlp_exporter._internal.model.spans import EventData
from mlflow_otlp_exporter._internal.privacy import Redactor, make_resource_filter
from support.content_samples import span
from support.offline_export import export_bytes
from support.spans import LIMITED, dropped_counts, make_limited_span


def hide(text: str) -> str:
    return text.replace("planted", "***")


def make_redactor(environment: dict[str, str] | None = None, **arguments: Any) -> Redactor:
    settings = resolve(arguments, environment=environment or {})
    return Redactor(settings.privacy, ProblemLog(), base64_max_length=settings.base64_max_length)


@pytest.mark.parametrize("arguments", [{"mask": hide}, {"hide": ["inputs"]}], ids=["masked", "hidden"])
def test_redact_keeps_all_other_fields(arguments: dict[str, Any]) -> None:
    before = make_limited_span()
    after = make_redactor(**arguments).redact(before)
    assert after is not before
    for name in ("name", "parent", "resource", "kind", "instrumentation_scope", "start_time", "end_time"):
        assert getattr(after, name) == getattr(before, name)
    assert after.get_span_context() == before.get_span_context()
    assert dict(after.attributes or {}) == dict(before.attributes or {})
    assert [(event.name, dict(event.attributes or {}), event.timestamp) for event in after.events] == [
        (event.name, dict(event.attributes or {}), event.timestamp) for event in before.events
    ]
    assert [(link.context, dict(link.attributes or {})) for link in after.links] == [
        (link.context, dict(link.attributes or {})) for link in before.links
    ]
    assert dropped_counts(after) == LIMITED


def test_redact_with_partly_hidden_event_keeps_its_dropped_count() -> None:
    context = SpanContext(1, 2, is_remote=False)
    event = EventData("event", {"input.value": "planted", "other": 1}, 5, 4)
    redactor = make_redactor(hide=["inputs"])
    (after,) = redactor.redact(ReadableSpan("a", context, resource=Resource({}), events=[event])).events
    assert (after.attributes, after.timestamp, after.dropped_attributes) == (
        {"input.value": REDACTED, "other": 1},
        5,
        4,
    )


class _Broken(ReadableSpan):
    @property
    def events(self) -> tuple[Event, ...]:
        raise RuntimeError("planted")


def test_span_that_cannot_be_redacted_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
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
    ("arguments", "variable", "expected"),
    [
        ({}, None, {"1", "2", "3", "4", "5"}),
        ({"compact": True}, None, set()),
        ({"compact": True}, "host.*", {"1", "2", "4", "5"}),
        ({"compact": True}, "none", {"1", "2", "3", "4", "5"}),
        ({"compact": True}, "*.name, service.*", {"5"}),
    ],
)
def test_export_drops_resource_attributes_when_compact(
    arguments: dict[str, bool], variable: str | None, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_OTLP_DROP_RESOURCE", variable)
    body = export_bytes([span(({}, ()), resource=RESOURCE)], **arguments)
    assert {number for number in "12345" if f"zebra-{number}".encode() in body} == expected
    assert b"production" in body


def test_resource_filter_drops_patterns_and_default_service_name() -> None:
    assert make_resource_filter(()) is None
    resource_filter = make_resource_filter(("a.*", "b?"))
    assert resource_filter is not None
    assert resource_filter({"a.x": 1, "ax": 2, "b1": 3, "b": 4}) == {"ax": 2, "b": 4}
    # OpenTelemetry's name for an application without a service name.
    assert resource_filter({"service.name": "unknown_service:python"}) == {}
    assert resource_filter({"service.name": "bot", "x": "unknown_service"}) == {
        "service.name": "bot",
        "x": "unknown_service",
    }


@pytest.mark.parametrize(
    ("environment", "hidden"),
    [
        ({}, ()),
        ({"OPENINFERENCE_HIDE_INPUTS": "true", "OPENINFERENCE_HIDE_LLM_TOOLS": "1"}, ("inputs", "llm_tools")),
        ({"OPENINFERENCE_HIDE_INPUTS": "false"}, ()),
        ({f"OPENINFERENCE_HIDE_{name.upper()}": "TRUE" for name in HIDEABLE}, HIDEABLE),
    ],
)
def test_resolve_reads_hide_variables(environment: dict[str, str], hidden: tuple[str, ...]) -> None:
    assert resolve({}, environment=environment).privacy.hide == hidden


def test_describe_settings_shows_sources_of_privacy_settings() -> None:
    environment = {"OPENINFERENCE_HIDE_INPUTS": "true", "MLFLOW_OTLP_MASK": "email,keys"}
    rows = {name: (value, source) for name, value, source in describe_settings(resolve({}, environment=environment))}
    assert rows["hide"] == ("inputs", "environment variable OPENINFERENCE_HIDE_INPUTS")
    assert rows["mask"] == ("email,keys", "environment variable MLFLOW_OTLP_MASK")
    assert resolve({"hide": "outputs"}, environment=environment).privacy.hide == ("outputs",)


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [({"OPENINFERENCE_HIDE_INPUTS": "please"}, {}), ({}, {"hide": "everything"})],
)
def test_invalid_hide_setting_raises(environment: dict[str, str], arguments: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"HIDE_INPUTS|hide="):
        resolve(arguments, environment=environment)


def test_export_with_hide_and_mask_applies_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_OUTPUTS", "true")
    content = (
        {"openinference.span.kind": "CHAIN", "input.value": json.dumps({"q": "ada@x.org"}), "output.value": "o-zebra"},
        (),
    )
    body = export_bytes([span(content)], mask="email")
    assert b"o-zebra" not in body
    assert b"[email]" in body
    assert b"__REDACTED__" in body


def test_journal_with_mask_holds_masked_spans(tmp_path: Path) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "bot", "owner": "planted"}), shutdown_on_exit=False)
    settings = {"spool": True, "spool_dir": tmp_path, "durability": "every-span", "mask": hide}
    exporter = MLflowSpanExporter(tracking_uri="http://127.0.0.1:9", **settings)  # type: ignore[arg-type]
    provider.add_span_processor(MLflowSpanProcessor(exporter))
    provider.get_tracer("tests").start_span("planted", attributes={"a": "planted", "b": "harmless"}).end()
    lines = b"".join(path.read_bytes() for path in tmp_path.rglob("journal/*") if path.is_file())
    assert b"harmless" in lines
    assert b"planted" not in lines
    provider.shutdown()


def test_redact_spans_with_deeply_nested_value_drops_only_its_span() -> None:
    nested: Any = 1
    for _ in range(2_000):
        nested = {"a": nested}
    context = SpanContext(1, 2, is_remote=False)
    good, bad = (
        ReadableSpan("span", context, resource=Resource({}), attributes=attributes)
        for attributes in ({"input.value": "hi"}, {"input.value": nested})
    )
    redacted, failed_count = make_redactor().redact_spans([good, bad, good])
    assert list(redacted) == [good, good]
    assert failed_count == 1
