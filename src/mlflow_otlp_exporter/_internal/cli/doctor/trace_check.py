"""The test trace of `mlflow-otlp doctor` and `mlflow-otlp send --test`: create, read back, compare, delete."""

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from mlflow_otlp_exporter._internal.mlflow_api.server import RestResult, request_json
from mlflow_otlp_exporter._internal.transport.http_types import Transport

_CHILD_NAME = "a step of it"
_QUESTION = "Does a trace arrive?"
_POLL_SECONDS = 0.25
_DURATION_NS = 100_000


def create_test_spans(resource: Resource, trace_name: str) -> list[ReadableSpan]:
    """Create a trace of two spans with input, output and type, which the console shows."""
    # Not with a tracer, whose spans depend on OTEL_SDK_DISABLED and other variables.
    generator, now = RandomIdGenerator(), time.time_ns()
    trace_id, scope = generator.generate_trace_id(), InstrumentationScope("mlflow-otlp-exporter")
    root, child = (
        SpanContext(trace_id, generator.generate_span_id(), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
        for _ in range(2)
    )
    return [
        ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=resource,
            attributes={"openinference.span.kind": "CHAIN", "input.value": _QUESTION, "output.value": "It does."},
            instrumentation_scope=scope,
            start_time=now,
            end_time=now + duration_ns,
        )
        for name, context, parent, duration_ns in (
            (_CHILD_NAME, child, root, _DURATION_NS // 2),
            (trace_name, root, None, _DURATION_NS),
        )
    ]


def mlflow_trace_id_of(spans: list[ReadableSpan]) -> str:
    """Return MLflow's id of the trace."""
    context = spans[0].get_span_context()
    assert context is not None
    return f"tr-{context.trace_id:032x}"


def read_trace(
    api: Transport, trace_id: str, workspace: str | None, *, wait_seconds: float, timeout_seconds: float
) -> RestResult:
    """Read a trace from MLflow; a missing one again for `wait_seconds`, because a Collector forwards with a delay."""
    deadline = time.monotonic() + wait_seconds
    while True:
        # MLflow before 3.8 has only the second path, whose response has no spans.
        for name in (f"get?trace_id={trace_id}", trace_id):
            path = f"/api/3.0/mlflow/traces/{name}"
            result = request_json(api, "GET", path, None, workspace=workspace, timeout_seconds=timeout_seconds)
            if result.outcome.status != 404:
                return result
        if time.monotonic() >= deadline:
            return result
        time.sleep(_POLL_SECONDS)


def find_missing_spans(spans: list[ReadableSpan], trace: Mapping[str, Any]) -> list[str]:
    """Return the names of spans that the trace in MLflow does not have."""
    if "spans" not in trace:
        return []  # MLflow before 3.8 does not return spans
    items = trace["spans"] if isinstance(trace["spans"], list) else []
    contexts = [(span.name, span.get_span_context()) for span in spans]
    sent = {(context.span_id, name) for name, context in contexts if context is not None}
    stored = {(_decode_span_id(item.get("span_id")), str(item.get("name"))) for item in items if isinstance(item, dict)}
    return sorted(name for _, name in sent - stored)


def _decode_span_id(text: Any) -> int:
    try:
        return int.from_bytes(base64.b64decode(text), "big")
    except (binascii.Error, ValueError, TypeError):
        return 0


def read_experiment_id(trace: Mapping[str, Any]) -> str:
    """Return the id of the trace's experiment; empty if the trace does not contain it."""
    value: Any = trace
    for name in ("trace_info", "trace_location", "mlflow_experiment", "experiment_id"):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return str(value)
