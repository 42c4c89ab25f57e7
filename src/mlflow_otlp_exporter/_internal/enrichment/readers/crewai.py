"""CrewAI's crews, whose question stands in the list of their tasks."""

from __future__ import annotations

from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.values import parse_objects, parse_structured, select_text


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads a crew's or a task's span as OpenInference's instrumentor writes it."""
    found = source.attributes
    tasks = [
        task["description"] for task in parse_objects(found.get("crew_tasks")) if _is_text(task.get("description"))
    ]
    result = parse_structured(found.get("output.value"))
    answer = select_text(result.get("raw")) if isinstance(result, dict) else None
    asked = None
    if isinstance(result, dict) and not tasks and "task_id" in found:
        asked = select_text(result.get("description"))
    given = "\n".join(tasks) or asked
    return NormalizedSpan(input=given, output=answer) if given or answer else None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
