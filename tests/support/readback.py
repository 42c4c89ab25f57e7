"""Looks at the traces of an experiment: what the console shows of them, against what must be seen.

    python -m support.readback --tracking-uri http://127.0.0.1:5000 --experiment NAME --truths FILE --json OUT

The truths are a list, one for each trace, in the order in which the traces began.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from support.cells import NO_TYPE, Cell, Seen, judge
from support.corpus import console_views
from support.recordings import RecordedTrace


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--truths", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    cells = judged(arguments.tracking_uri, arguments.experiment, json.loads(arguments.truths.read_text()))
    arguments.json.write_text(json.dumps(cells, default=str))


def judged(tracking_uri: str, experiment: str, truths: list[dict[str, Any]]) -> list[Cell]:
    """All cells of all traces; a trace is called by its number and its name."""
    import mlflow  # tests import this module without MLflow's client

    client = mlflow.MlflowClient(tracking_uri)
    found_experiment = client.get_experiment_by_name(experiment)
    assert found_experiment is not None
    number = found_experiment.experiment_id
    traces = client.search_traces(locations=[number], max_results=100)
    traces.sort(key=lambda trace: min(span.start_time_ns for span in trace.data.spans))
    named = {f"{position} {_name(trace)}": trace for position, trace in enumerate(traces)}
    assert len(named) == len(truths), f"{len(truths)} traces were expected, and there are {list(named)}"
    views = console_views(named)
    cells: list[Cell] = []
    for (key, trace), truth in zip(named.items(), truths, strict=True):
        types = {span.span_type for span in trace.data.spans} - {*NO_TYPE}
        found = {kind for kind in types if _finds(client, number, kind, trace.info.trace_id)}
        names = [span.name for span in trace.data.spans]
        recorded = RecordedTrace(key, trace.info.trace_id.removeprefix("tr-"), names)
        cells += judge(Seen(recorded, trace.info, trace.data.spans, views[key], found, twin_counts=False), truth)
    return cells


def _name(trace: Any) -> str:
    return " ".join(span.name for span in trace.data.spans if span.parent_id is None)


def _finds(client: Any, experiment_id: str, kind: str, trace_id: str) -> bool:
    found = client.search_traces(
        locations=[experiment_id], filter_string=f"span.type = '{kind}'", max_results=100, include_spans=False
    )
    return any(hit.info.trace_id == trace_id for hit in found)


if __name__ == "__main__":
    main()
