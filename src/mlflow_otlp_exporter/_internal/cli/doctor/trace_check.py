"""The test trace of `mlflow-otlp doctor` and `mlflow-otlp send --test`: made, found again, compared, taken away."""

from __future__ import annotations

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
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, Transport, TransportError

_STEP = "a step of it"
_QUESTION = "Does a trace arrive?"
_POLL_SECONDS = 0.25


def two_spans(resource: Resource, command: str) -> list[ReadableSpan]:
    """A trace of two spans, with what a trace in the console has: input, output, type.

    Args:
        resource: Of whom.
        command: The trace's name: what the user has called.
    """
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("mlflow-otlp-exporter")
    attributes = {"openinference.span.kind": "CHAIN", "input.value": _QUESTION, "output.value": "It does."}
    root = tracer.start_span(command, attributes=attributes)
    tracer.start_span(_STEP, context=set_span_in_context(root), attributes=attributes).end()
    root.end()
    provider.shutdown()
    return list(memory.get_finished_spans())


def trace_id_of(spans: list[ReadableSpan]) -> str:
    """MLflow's id of the trace."""
    context = spans[0].get_span_context()
    assert context is not None
    return f"tr-{context.trace_id:032x}"


def read_back(
    api: Transport, trace_id: str, destination: Destination, *, wait: float, seconds: float
) -> Mapping[str, Any] | HttpResponse | TransportError:
    """A trace as MLflow has it.

    Args:
        api: MLflow's REST side.
        trace_id: MLflow's id.
        destination: Whose workspace it is in.
        wait: Seconds to ask again for, if it is not there; a Collector takes its time.
        seconds: For each request.

    Returns:
        The trace, or the answer that it is not, or may not be had.
    """
    headers = destination.headers(None)
    until = time.monotonic() + wait
    while True:
        # MLflow before 3.8 has the second one only, which has no spans.
        for path in (f"traces/get?trace_id={trace_id}", f"traces/{trace_id}"):
            answer = api.send(HttpRequest("GET", f"/api/3.0/mlflow/{path}", headers=headers, timeout_seconds=seconds))
            if isinstance(answer, TransportError) or answer.status != 404:
                break
        trace = _trace_in(answer) if isinstance(answer, HttpResponse) else None
        if trace is not None:
            return trace
        missing = isinstance(answer, HttpResponse) and answer.status == 404
        if not missing or time.monotonic() >= until:
            return answer
        time.sleep(_POLL_SECONDS)


def _trace_in(answer: HttpResponse) -> Mapping[str, Any] | None:
    try:
        found = json.loads(answer.body).get("trace") if answer.status == 200 else None
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def differences(spans: list[ReadableSpan], trace: Mapping[str, Any]) -> str:
    """What of a trace is not as it was sent; empty if all is.

    Args:
        spans: What was sent.
        trace: What MLflow has.
    """
    if "spans" not in trace:
        return ""  # MLflow before 3.8 does not give them back
    contexts = [(span.name, span.get_span_context()) for span in spans]
    sent = {(context.span_id, name) for name, context in contexts if context is not None}
    stored = {(_number(span.get("span_id", "")), span.get("name", "")) for span in trace["spans"]}
    missing = sorted(name for _, name in sent - stored)
    return f"not as sent: {', '.join(missing)}" if missing else ""


def _number(text: str) -> int:
    """A span's id, which MLflow writes in Base64."""
    try:
        return int.from_bytes(base64.b64decode(text), "big")
    except (binascii.Error, ValueError, TypeError):
        return 0


def experiment_of(trace: Mapping[str, Any]) -> str:
    """The id of the experiment that a trace is in; empty if that is not told."""
    location = trace.get("trace_info", {}).get("trace_location", {})
    return str(location.get("mlflow_experiment", {}).get("experiment_id", ""))


def delete(
    api: Transport, trace_id: str, destination: Destination, experiment_id: str, seconds: float
) -> HttpResponse | TransportError:
    """Takes a trace away again.

    Args:
        api: MLflow's REST side.
        trace_id: MLflow's id.
        destination: Whose workspace it is in.
        experiment_id: The experiment that it is in.
        seconds: For the request.
    """
    body = json.dumps({"experiment_id": experiment_id, "request_ids": [trace_id]}).encode()
    headers = {"content-type": "application/json", **destination.headers(None)}
    path = "/api/3.0/mlflow/traces/delete-traces"
    return api.send(HttpRequest("POST", path, headers=headers, body=body, timeout_seconds=seconds))
