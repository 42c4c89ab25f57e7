"""Print what MLflow's console shows of the only trace of an experiment, as in the pages in docs/frameworks.

python -m support.framework_traces --tracking-uri http://127.0.0.1:5000 --json OUT EXPERIMENT ...

It runs in its own process, because it needs MLflow's client.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.corpus import console_views
from support.trace_checks import LLM, count_roles, parse_json_or_text

# The frameworks by the environment that has them, as in .ci/constraints; a page in docs/frameworks has each name.
ENVIRONMENTS = {
    "frameworks-openai-2": ("crewai", "dspy", "google-adk", "litellm", "llama-index", "strands"),
    "frameworks-openai-3": ("ag2", "haystack", "langgraph", "openai-agents", "pydantic-ai"),
}
_MAX_VALUE_LENGTH = 60


def main() -> None:
    import mlflow

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("experiments", nargs="+")
    arguments = parser.parse_args()
    client = mlflow.MlflowClient(arguments.tracking_uri)
    traces: dict[str, Any] = {}
    for name in arguments.experiments:
        experiment = client.get_experiment_by_name(name)
        found_traces = client.search_traces(locations=[experiment.experiment_id]) if experiment else []
        traces |= {f"{name} {number}": trace for number, trace in enumerate(found_traces)}
    views = console_views(traces)
    texts: dict[str, list[str]] = {name: [] for name in arguments.experiments}
    for key, trace in traces.items():
        texts[key.rpartition(" ")[0]].append("\n".join(format_trace(trace, views[key])) + "\n")
    arguments.json.write_text(json.dumps(texts))


def format_trace(trace: Any, views: Mapping[str, Any]) -> Iterator[str]:
    """Yield the row of the list of traces, and a line per span with its type and content."""
    info, usage = trace.info, trace.info.token_usage or {}
    cost = parse_json_or_text(info.trace_metadata.get("mlflow.trace.cost")) or {}
    yield f"name      {info.tags.get('mlflow.traceName')}"
    yield f"request   {_format_value(info.request_preview)}"
    yield f"response  {_format_value(info.response_preview)}"
    yield f"tokens    {usage.get('input_tokens')} input, {usage.get('output_tokens')} output"
    yield f"cost      ${cost.get('total_cost', 0):.6f}"
    if tools := sorted({tool for view in views.values() for tool in view.get("tools") or ()}):
        yield f"tools     {', '.join(tools)}"
    yield ""
    spans = list(_walk(sorted(trace.data.spans, key=lambda span: span.start_time_ns), None, 0))
    width = max(2 * depth + len(span.name) for depth, span in spans) + 2
    for depth, span in spans:
        content = ""
        if span.span_type in LLM:
            content = ", ".join(count_roles(views.get(span.span_id, {}).get("chat") or []))
        elif span.span_type == "TOOL":
            content = f"{_format_value(span.inputs)} -> {_format_value(span.outputs)}"
        yield f"{'  ' * depth + span.name:{width}}{span.span_type or '-':12}{content}".rstrip()


def _walk(spans: Sequence[Any], parent: str | None, depth: int) -> Iterator[tuple[int, Any]]:
    for span in spans:
        if span.parent_id == parent:
            yield depth, span
            yield from _walk(spans, span.span_id, depth + 1)


def _format_value(value: Any) -> str:
    parsed = parse_json_or_text(value)
    text = parsed if isinstance(parsed, str) else json.dumps(parsed)
    return text if len(text) <= _MAX_VALUE_LENGTH else text[: _MAX_VALUE_LENGTH - 3] + "..."


if __name__ == "__main__":
    main()
