"""The test trace of `mlflow-otlp doctor` and `mlflow-otlp send --test`: create, read back, compare, delete."""

import base64
import binascii
import json
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import set_span_in_context

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport, TransportError

_CHILD_NAME = "a step of it"
_QUESTION = "Does a trace arrive?"
_POLL_SECONDS = 0.25


def create_test_spans(resource: Resource, trace_name: str) -> list[ReadableSpan]:
    """Create a trace of two spans with input, output and type, which the console shows."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("mlflow-otlp-exporter")
    attributes = {"openinference.span.kind": "CHAIN", "input.value": _QUESTION, "output.value": "It does."}
    root = tracer.start_span(trace_name, attributes=attributes)
    tracer.start_span(_CHILD_NAME, context=set_span_in_context(root), attributes=attributes).end()
    root.end()
    provider.shutdown()
    return list(memory.get_finished_spans())


def mlflow_trace_id_of(spans: list[ReadableSpan]) -> str:
    """Return MLflow's id of the trace."""
    context = spans[0].get_span_context()
    assert context is not None
    return f"tr-{context.trace_id:032x}"


def read_trace(
    api: Transport, trace_id: str, destination: Destination, *, wait_seconds: float, timeout_seconds: float
) -> Mapping[str, Any] | HttpResponse | TransportError:
    """Read a trace from MLflow, or return the response without it.

    A missing trace is requested again for `wait_seconds`, because a Collector forwards with a delay.
    """
    headers = destination.headers(None)
    deadline = time.monotonic() + wait_seconds
    while True:
        # MLflow before 3.8 has only the second path, whose response has no spans.
        for path in (f"traces/get?trace_id={trace_id}", f"traces/{trace_id}"):
            request = HttpRequest("GET", f"/api/3.0/mlflow/{path}", headers=headers, timeout_seconds=timeout_seconds)
            response = api.send(request)
            if isinstance(response, TransportError) or response.status != 404:
                break
        trace = _parse_trace(response) if isinstance(response, HttpResponse) else None
        if trace is not None:
            return trace
        is_missing = isinstance(response, HttpResponse) and response.status == 404
        if not is_missing or time.monotonic() >= deadline:
            return response
        time.sleep(_POLL_SECONDS)


def _parse_trace(response: HttpResponse) -> Mapping[str, Any] | None:
    try:
        trace = json.loads(response.body).get("trace") if response.status == 200 else None
    except (ValueError, AttributeError, RecursionError):
        return None
    return trace if isinstance(trace, dict) else None


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


def delete_trace(
    api: Transport, trace_id: str, destination: Destination, experiment_id: str, timeout_seconds: float
) -> HttpResponse | TransportError:
    body = json.dumps({"experiment_id": experiment_id, "request_ids": [trace_id]}).encode()
    headers = {"content-type": "application/json", **destination.headers(None)}
    path = "/api/3.0/mlflow/traces/delete-traces"
    return api.send(HttpRequest("POST", path, headers=headers, body=body, timeout_seconds=timeout_seconds))
