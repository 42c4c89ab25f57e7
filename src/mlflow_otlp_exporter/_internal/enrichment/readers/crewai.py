"""CrewAI: the question is in the list of the crew's tasks."""

from __future__ import annotations

from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.values import parse_objects, parse_structured, parse_text, select_text


def read(span: SpanView) -> NormalizedSpan | None:
    """The question and the answer of a crew or a task, as OpenInference's instrumentor writes them."""
    attributes = span.attributes
    tasks = [
        task["description"]
        for task in parse_objects(attributes.get("crew_tasks"))
        if parse_text(task.get("description"))
    ]
    result = parse_structured(attributes.get("output.value"))
    answer = select_text(result.get("raw")) if isinstance(result, dict) else None
    description = None
    if isinstance(result, dict) and not tasks and "task_id" in attributes:
        description = select_text(result.get("description"))
    question = "\n".join(tasks) or description
    return NormalizedSpan(input=question, output=answer) if question or answer else None
