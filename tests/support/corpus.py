"""Sends the recorded traces to an MLflow server, and looks at what its console makes of them.

    python -m support.corpus --tracking-uri http://127.0.0.1:5000 [--way whole] [--case 'oi-*'] [--json OUT]

Prints the cells that are wrong. It is run in a process of its own, as it needs MLflow's client. Without a tracking URI
it starts a server, and writes the table of docs/conventions.md (`make conventions`).
"""

import argparse
import fnmatch
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter
from support import conventions
from support.cells import NO_TYPE, Cell, Seen, judge, unseen
from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.needs import executable
from support.recordings import CORPUS, RecordedTrace, cases, load

_PARSER = Path(__file__).with_name("console_parser.js")
_PARSE_SECONDS, _SECONDS = 120, 240
_MOST_TRACES = 500


_Spans = list[ReadableSpan]


class Way(NamedTuple):
    """How the traces are sent.

    Attributes:
        exporter: Makes an exporter for an address and headers.
        batches: From the spans of each case to what each call of `export()` gets.
    """

    exporter: Callable[[str, dict[str, str]], SpanExporter]
    batches: Callable[[list[_Spans]], Iterable[_Spans]] = iter


def _in_threes(recorded: list[_Spans]) -> Iterator[_Spans]:
    for spans in recorded:
        yield from (spans[start : start + 3] for start in range(0, len(spans), 3))


def _at_once(recorded: list[_Spans]) -> Iterator[_Spans]:
    yield [span for spans in recorded for span in spans]


def _ours(**arguments: Any) -> Callable[[str, dict[str, str]], SpanExporter]:
    return lambda endpoint, headers: MLflowSpanExporter(endpoint=endpoint, headers=headers, **arguments)


WAYS = {
    "stock": Way(lambda endpoint, headers: OTLPSpanExporter(endpoint=endpoint, headers=headers), _at_once),
    "whole": Way(_ours()),
    "in pieces": Way(_ours(), _in_threes),
    "compact": Way(_ours(compact=True), _at_once),
}


@dataclass
class Sent:
    """What was sent one way, and what the server has of it.

    Attributes:
        experiment_id: Where it was sent.
        traces: What was sent.
        stored: MLflow's traces, by key.
        found: By span type, the ids of the traces that the server's search finds.
    """

    experiment_id: str
    traces: list[RecordedTrace] = field(default_factory=list)
    stored: dict[str, Any] = field(default_factory=dict)
    found: dict[str, set[str]] = field(default_factory=dict)


def truths() -> dict[str, dict[str, Any]]:
    """What must be seen, by trace."""
    return dict(json.loads((CORPUS / "truth.json").read_text()))


def score(tracking_uri: str, ways: Sequence[str], pattern: str = "*") -> dict[str, list[Cell]]:
    """Sends the cases each way, reads them back and judges them."""
    import mlflow  # tests import this module without MLflow's client

    client = mlflow.MlflowClient(tracking_uri)
    keys = fnmatch.filter(cases(), pattern)
    sent = {way: send(client, tracking_uri, way, keys) for way in ways}
    shown = {f"{way} {key}": trace for way, each in sent.items() for key, trace in each.stored.items()}
    views = console_views(shown)
    return {way: _judged(each, {key: views[f"{way} {key}"] for key in each.stored}) for way, each in sent.items()}


def send(client: Any, tracking_uri: str, way: str, keys: Sequence[str]) -> Sent:
    """Sends cases to an experiment of their own, and reads them back."""
    sent = Sent(client.create_experiment(f"{way} {secrets.token_hex(4)}"))
    exporter = WAYS[way].exporter(f"{tracking_uri}/v1/traces", {"x-mlflow-experiment-id": sent.experiment_id})
    recorded = [load(key) for key in keys]
    sent.traces = [trace for _, traces in recorded for trace in traces]
    for spans in WAYS[way].batches([spans for spans, _ in recorded]):
        result = exporter.export(spans)
        assert result is SpanExportResult.SUCCESS, f"{way}: {[span.name for span in spans]} were not exported"
    exporter.shutdown()
    query: dict[str, Any] = {"locations": [sent.experiment_id], "max_results": _MOST_TRACES}
    by_id = {trace.info.trace_id: trace for trace in client.search_traces(**query)}
    for trace in sent.traces:
        with suppress(KeyError):
            sent.stored[trace.key] = by_id[f"tr-{trace.trace_id}"]
    kinds = {span.span_type for trace in sent.stored.values() for span in trace.data.spans} - {*NO_TYPE}
    for kind in kinds:
        hits = client.search_traces(filter_string=f"span.type = '{kind}'", include_spans=False, **query)
        sent.found[kind] = {hit.info.trace_id for hit in hits}
    return sent


def console_views(traces: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the console shows of each span of each trace, by the console's own code."""
    import mlflow

    static = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "traces.json"), Path(folder, "views.json")
        source.write_text(json.dumps({key: trace.to_dict() for key, trace in traces.items()}, default=str))
        command = [str(executable("node")), str(_PARSER), str(static), str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PARSE_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return {key: shown.get("spans", {}) for key, shown in json.loads(target.read_text()).items()}


def _judged(sent: Sent, views: Mapping[str, Any]) -> list[Cell]:
    cells: list[Cell] = []
    truth_of = truths()
    for recorded in sent.traces:
        truth, there = truth_of.get(recorded.key, {}), sent.stored.get(recorded.key)
        if there is None:
            cells += [] if "duplicate_of" in truth else judge(unseen(recorded), truth)
            continue
        twin = sent.stored.get(truth.get("duplicate_of", ""))
        types = {kind for kind, found in sent.found.items() if there.info.trace_id in found}
        twin_counts = bool(twin and twin.info.token_usage)
        seen = Seen(recorded, there.info, there.data.spans, views[recorded.key], types, twin_counts)
        cells += judge(seen, truth)
    return cells


def scored_apart(tracking_uri: str, ways: Sequence[str]) -> dict[str, list[Cell]]:
    """The same in a process of its own, for tests: MLflow's client warns, and leaves threads and variables behind."""
    words = ["--tracking-uri", tracking_uri, *(word for way in ways for word in ("--way", way))]
    return {way: [Cell(*cell) for cell in cells] for way, cells in apart("support.corpus", *words).items()}


def apart(module: str, *words: str) -> Any:
    """Runs a module of tests/support in a process of its own.

    Args:
        module: Takes `--json FILE`, besides the words.
        words: Its arguments.

    Returns:
        What it wrote to the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "found.json")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        command = [sys.executable, "-m", module, *words, "--json", str(target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(target.read_text())


def _write_table() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            scored = scored_apart(server.uri, ["stock", "whole"])
        finally:
            server.stop()
    conventions.write(scored["stock"], scored["whole"], truths())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", help="a running MLflow server")
    parser.add_argument("--way", action="append", choices=WAYS, help="how to send; all ways by default")
    parser.add_argument("--case", default="*", help="a pattern for <source>/<case>")
    parser.add_argument("--json", type=Path, help="a file for all cells")
    arguments = parser.parse_args()
    if arguments.tracking_uri is None:
        _write_table()
        return
    scored = score(arguments.tracking_uri.rstrip("/"), arguments.way or list(WAYS), arguments.case)
    for way, cells in scored.items():
        counted = [cell for cell in cells if not cell.apart]
        for cell in counted:
            if not cell.right:
                print(f"{way}: {cell.trace} {cell.column}: expected {cell.expected}, found {cell.found}"[:300])
        print(f"{way}: {sum(cell.right for cell in counted)} of {len(counted)} cells are right")
    if arguments.json:
        arguments.json.write_text(json.dumps(scored, default=str))


if __name__ == "__main__":
    main()
