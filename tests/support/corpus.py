"""Send the recorded traces to an MLflow server, and check what its console shows.

    python -m support.corpus [--tracking-uri http://127.0.0.1:5000] [--way whole] [--case 'oi-*'] [--json OUT]

Prints the failed checks. It runs in its own process, because it needs MLflow's client. Without a tracking URI it
starts a server. Without any argument it writes the tables of docs/conventions.md (`make conventions`).
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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter
from support import conventions
from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.needs import executable
from support.recordings import CORPUS, RecordedTrace, cases, load
from support.trace_checks import NO_TYPE, CheckResult, StoredTrace, check_trace, missing_trace

_PARSER = Path(__file__).with_name("console_parser.js")
_PARSE_TIMEOUT_SECONDS, _TIMEOUT_SECONDS = 120, 240
_MAX_TRACES = 500
GATEWAY_PROTOCOLS = ("protobuf", "json", "grpc")


_Spans = list[ReadableSpan]


class Way(NamedTuple):
    """An exporter (made for an endpoint and headers), and the batches of spans that it gets."""

    exporter: Callable[[str, dict[str, str]], SpanExporter]
    batches: Callable[[list[_Spans]], Iterable[_Spans]] = iter


def _batches_of_three(recorded: list[_Spans]) -> Iterator[_Spans]:
    for spans in recorded:
        yield from (spans[start : start + 3] for start in range(0, len(spans), 3))


def _one_batch(recorded: list[_Spans]) -> Iterator[_Spans]:
    yield [span for spans in recorded for span in spans]


def _ours(**arguments: Any) -> Callable[[str, dict[str, str]], SpanExporter]:
    return lambda endpoint, headers: MLflowSpanExporter(endpoint=endpoint, headers=headers, **arguments)


def _gateway(protocol: str, *, in_pieces: bool = False) -> Callable[[str, dict[str, str]], SpanExporter]:
    def create(endpoint: str, headers: dict[str, str]) -> SpanExporter:
        from support.gateway_exporter import GatewayExporter  # needs the extra, which few environments have

        return GatewayExporter(endpoint, headers, protocol, in_pieces=in_pieces)

    return create


WAYS = {
    "stock": Way(lambda url, headers: OTLPSpanExporter(endpoint=url, headers=headers, timeout=120), _one_batch),
    "whole": Way(_ours()),
    "in pieces": Way(_ours(), _batches_of_three),
    "compact": Way(_ours(compact=True), _one_batch),
    **{f"gateway {protocol}": Way(_gateway(protocol)) for protocol in GATEWAY_PROTOCOLS},
    **{f"gateway {protocol} in pieces": Way(_gateway(protocol, in_pieces=True)) for protocol in GATEWAY_PROTOCOLS},
}


@dataclass
class SentTraces:
    """The traces that were sent to an experiment, those that the server stored by key, and its hits by span type."""

    experiment_id: str
    traces: list[RecordedTrace] = field(default_factory=list)
    stored: dict[str, Any] = field(default_factory=dict)
    hits: dict[str, set[str]] = field(default_factory=dict)


def truths() -> dict[str, dict[str, Any]]:
    """Read the ground truth of each trace."""
    return dict(json.loads((CORPUS / "truth.json").read_text()))


def score(tracking_uri: str, ways: Sequence[str], pattern: str = "*") -> dict[str, list[CheckResult]]:
    """Send the cases each way, read them back and check them."""
    import mlflow  # tests import this module without MLflow's client

    client = mlflow.MlflowClient(tracking_uri)
    keys = fnmatch.filter(cases(), pattern)
    sent = {way: send(client, tracking_uri, way, keys) for way in ways}
    stored = {f"{way} {key}": trace for way, traces in sent.items() for key, trace in traces.stored.items()}
    views = console_views(stored)
    return {
        way: _check_traces(traces, {key: views[f"{way} {key}"] for key in traces.stored})
        for way, traces in sent.items()
    }


def send(client: Any, tracking_uri: str, way: str, keys: Sequence[str]) -> SentTraces:
    """Send cases to a new experiment, and read them back."""
    sent = SentTraces(client.create_experiment(f"{way} {secrets.token_hex(4)}"))
    exporter = WAYS[way].exporter(f"{tracking_uri}/v1/traces", {"x-mlflow-experiment-id": sent.experiment_id})
    recorded = [load(key) for key in keys]
    sent.traces = [trace for _, traces in recorded for trace in traces]
    for spans in WAYS[way].batches([spans for spans, _ in recorded]):
        result = exporter.export(spans)
        assert result is SpanExportResult.SUCCESS, f"{way}: {[span.name for span in spans]} were not exported"
    exporter.shutdown()
    query: dict[str, Any] = {"locations": [sent.experiment_id], "max_results": _MAX_TRACES}
    by_id = {trace.info.trace_id: trace for trace in client.search_traces(**query)}
    for trace in sent.traces:
        with suppress(KeyError):
            sent.stored[trace.key] = by_id[f"tr-{trace.trace_id}"]
    kinds = {span.span_type for trace in sent.stored.values() for span in trace.data.spans} - {*NO_TYPE}
    for kind in kinds:
        hits = client.search_traces(filter_string=f"span.type = '{kind}'", include_spans=False, **query)
        sent.hits[kind] = {hit.info.trace_id for hit in hits}
    return sent


def console_views(traces: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the console shows of each span of each trace, by the console's own code."""
    import mlflow

    static = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "traces.json"), Path(folder, "views.json")
        source.write_text(json.dumps({key: trace.to_dict() for key, trace in traces.items()}, default=str))
        command = [str(executable("node")), str(_PARSER), str(static), str(source), str(target)]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=_PARSE_TIMEOUT_SECONDS, check=False)
        assert completed.returncode == 0, completed.stderr
        return {key: view.get("spans", {}) for key, view in json.loads(target.read_text()).items()}


def _check_traces(sent: SentTraces, views: Mapping[str, Any]) -> list[CheckResult]:
    results: list[CheckResult] = []
    truth_of = truths()
    for recorded in sent.traces:
        truth, stored = truth_of.get(recorded.key, {}), sent.stored.get(recorded.key)
        if stored is None:
            results += [] if "duplicate_of" in truth else check_trace(missing_trace(recorded), truth)
            continue
        duplicate = sent.stored.get(truth.get("duplicate_of", ""))
        types = {kind for kind, trace_ids in sent.hits.items() if stored.info.trace_id in trace_ids}
        is_counted = bool(duplicate and duplicate.info.token_usage)
        trace = StoredTrace(recorded, stored.info, stored.data.spans, views[recorded.key], types, is_counted)
        results += check_trace(trace, truth)
    return results


def score_in_subprocess(tracking_uri: str, ways: Sequence[str]) -> dict[str, list[CheckResult]]:
    """Score in a process of its own: MLflow's client warns, and leaves threads and environment variables behind."""
    arguments = ["--tracking-uri", tracking_uri, *(word for way in ways for word in ("--way", way))]
    return {
        way: [CheckResult(*result) for result in results]
        for way, results in run_module("support.corpus", *arguments).items()
    }


def run_module(module: str, *arguments: str) -> Any:
    """Run a module of tests/support in its own process; return the content of its output `--json FILE`."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "output.json")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        command = [sys.executable, "-m", module, *arguments, "--json", str(target)]
        completed = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return json.loads(target.read_text())


@contextmanager
def _running_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            yield server.uri
        finally:
            server.stop()


def _write_table() -> None:
    with _running_server() as tracking_uri:
        scored = score_in_subprocess(tracking_uri, ["stock", "whole"])
    conventions.write_tables(scored["stock"], scored["whole"], truths())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", help="a running MLflow server; by default, one is started")
    parser.add_argument("--way", action="append", choices=WAYS, help="how to send; all ways by default")
    parser.add_argument("--case", default="*", help="a pattern for <source>/<case>")
    parser.add_argument("--json", type=Path, help="a file for all results")
    arguments = parser.parse_args()
    if len(sys.argv) == 1:
        _write_table()
        return
    with nullcontext(arguments.tracking_uri) if arguments.tracking_uri else _running_server() as tracking_uri:
        scored = score(tracking_uri.rstrip("/"), arguments.way or list(WAYS), arguments.case)
    for way, results in scored.items():
        counted = [result for result in results if not result.unrecoverable]
        for result in counted:
            if not result.passed:
                print(f"{way}: {result.trace} {result.column}: expected {result.expected}, got {result.actual}"[:300])
        print(f"{way}: {sum(result.passed for result in counted)} of {len(counted)} checks passed")
    if arguments.json:
        arguments.json.write_text(json.dumps(scored, default=str))


if __name__ == "__main__":
    main()
