"""Samplers of the application that record no trace: named at the start, and at the end."""

import logging
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)

from mlflow_otlp_exporter import configure, shutdown
from mlflow_otlp_exporter._internal.setup.auto_instrumentation import AutoInstrumentationSpanExporter
from mlflow_otlp_exporter._internal.setup.tracer_provider import can_sample, describe_sampler
from support.scripted_server import ScriptedServer


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    shutdown()


def lines_with(code: str, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, text) for record in caplog.records if code in (text := record.getMessage())]


@pytest.mark.parametrize(
    ("variables", "source"),
    [
        ({"MLFLOW_OTLP_ENABLED": "false"}, "environment variable MLFLOW_OTLP_ENABLED"),
        ({"OTEL_SDK_DISABLED": "true"}, "environment variable OTEL_SDK_DISABLED"),
        ({"OTEL_SDK_DISABLED": "true", "MLFLOW_OTLP_ENABLED": "false"}, "environment variable OTEL_SDK_DISABLED"),
        ({}, "argument enabled="),
    ],
)
def test_configure_when_disabled_names_the_setting(
    variables: dict[str, str], source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    configure(enabled=None if variables else False)
    assert lines_with("MLO-702", caplog) == [("INFO", f"Export to MLflow is disabled by {source}. [MLO-702]")]
    if variables:
        AutoInstrumentationSpanExporter()
        assert lines_with("MLO-702", caplog)[1:] == lines_with("MLO-702", caplog)[:1]


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off"])
def test_configure_with_sampler_that_records_nothing_names_the_variable(
    sampler: str, scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    expected = "AlwaysOffSampler (environment variable OTEL_TRACES_SAMPLER)"
    assert lines_with("MLO-801", caplog)[0][1].endswith(f"; sampler: {expected} [MLO-801]")
    assert lines_with("MLO-702", caplog) == [
        ("WARNING", f"No trace is recorded, because of the sampler: {expected} [MLO-702]")
    ]
    for name in ("first", "second"):
        with trace.get_tracer("tests").start_as_current_span(name):
            trace.get_tracer("tests").start_span("child").end()
    telemetry.shutdown()
    assert lines_with("MLO-702", caplog)[1:] == [
        ("INFO", f"No trace was sent: the sampler recorded 0 of 2; sampler: {expected} [MLO-702]")
    ]


def test_shutdown_with_sampled_trace_logs_nothing_about_the_others(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    provider = TracerProvider(sampler=TraceIdRatioBased(0.5), shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    assert "sampler: TraceIdRatioBased{0.5} (of the tracer provider)" in lines_with("MLO-801", caplog)[0][1]
    for _ in range(64):
        provider.get_tracer("tests").start_span("a").end()
    telemetry.shutdown()
    assert lines_with("MLO-702", caplog) == []


class FailingSampler(Sampler):
    def should_sample(self, *_args: object, **_more: object) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        raise RuntimeError


def test_describe_sampler_handles_samplers_of_others() -> None:
    assert describe_sampler(None) == ""
    assert describe_sampler(TracerProvider(shutdown_on_exit=False)) == ""
    assert describe_sampler(TracerProvider(FailingSampler(), shutdown_on_exit=False)).startswith("FailingSampler")
    off = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    assert describe_sampler(off) == "AlwaysOffSampler (of the tracer provider)"


class SamplerByName(StaticSampler):
    """Records only spans whose names begin with `chat`."""

    def __init__(self) -> None:
        super().__init__(Decision.DROP)

    def get_description(self) -> str:
        return "SamplerByName"


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (ALWAYS_OFF, False),
        (ParentBased(ALWAYS_OFF), False),
        (TraceIdRatioBased(0.0), False),
        (TraceIdRatioBased(0.1), True),
        (ParentBased(ALWAYS_ON), True),
        (SamplerByName(), True),
        (ParentBased(SamplerByName()), True),
    ],
)
def test_can_sample_is_false_only_for_samplers_that_record_nothing(sampler: Sampler, expected: bool) -> None:
    assert can_sample(sampler) is expected
