"""Check the traces of an experiment in the console against the ground truth.

    python -m support.experiment_check --tracking-uri http://127.0.0.1:5000 --experiment NAME --truths FILE --json OUT

FILE holds a list with the ground truth of each trace, in the order of their start.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from support.corpus import console_views
from support.recordings import RecordedTrace
from support.trace_checks import NO_TYPE, CheckResult, StoredTrace, check_trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--truths", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    results = check_experiment(arguments.tracking_uri, arguments.experiment, json.loads(arguments.truths.read_text()))
    arguments.json.write_text(json.dumps(results, default=str))


def check_experiment(tracking_uri: str, experiment: str, truths: list[dict[str, Any]]) -> list[CheckResult]:
    """Check all traces; the key of a trace is its number and name."""
    import mlflow  # tests import this module without MLflow's client

    client = mlflow.MlflowClient(tracking_uri)
    stored_experiment = client.get_experiment_by_name(experiment)
    assert stored_experiment is not None
    experiment_id = stored_experiment.experiment_id
    traces = client.search_traces(locations=[experiment_id], max_results=100)
    traces.sort(key=lambda trace: min(span.start_time_ns for span in trace.data.spans))
    by_key = {f"{position} {_name(trace)}": trace for position, trace in enumerate(traces)}
    assert len(by_key) == len(truths), f"{len(truths)} traces were expected, and there are {list(by_key)}"
    views = console_views(by_key)
    results: list[CheckResult] = []
    for (key, trace), truth in zip(by_key.items(), truths, strict=True):
        types = {span.span_type for span in trace.data.spans} - {*NO_TYPE}
        searchable = {kind for kind in types if _is_searchable(client, experiment_id, kind, trace.info.trace_id)}
        names = [span.name for span in trace.data.spans]
        recorded = RecordedTrace(key, trace.info.trace_id.removeprefix("tr-"), names)
        stored = StoredTrace(
            recorded, trace.info, trace.data.spans, views[key], searchable, has_counted_duplicate=False
        )
        results += check_trace(stored, truth)
    return results


def _name(trace: Any) -> str:
    return " ".join(span.name for span in trace.data.spans if span.parent_id is None)


def _is_searchable(client: Any, experiment_id: str, kind: str, trace_id: str) -> bool:
    hits = client.search_traces(
        locations=[experiment_id], filter_string=f"span.type = '{kind}'", max_results=100, include_spans=False
    )
    return any(hit.info.trace_id == trace_id for hit in hits)


if __name__ == "__main__":
    main()
