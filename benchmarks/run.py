"""Run benchmarks and print a table: `python benchmarks/run.py [--json FILE] [name ...]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import charts, load
from benchmarks.rows import HEADING, format_rows

# In the order of their duration.
NAMES = (
    "import_time",
    "exporters",
    "exit_time",
    "encoder",
    "enrichment",
    "tree_shapes",
    "whole_process",
    "spool",
    "traced",
    "app_thread",
    "export_path",
    "load",
    "latency",
    "memory",
    "gateway",
    "server_time",
)
_PACKAGES = ("mlflow", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "protobuf")


def _describe_machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def main() -> int:
    """Run the named benchmarks, or all. Return 1 if a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(NAMES)}; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="update the table and charts of this folder")
    parser.add_argument("--full", action="store_true", help="run `load` for two minutes per load and side")
    parser.add_argument("--seconds", type=float, help="duration of the load of gateway and server_time")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(NAMES)):
        parser.error(f"unknown benchmark: {', '.join(unknown)}; available: {', '.join(NAMES)}")
    # Exporters ignore the caller's environment.
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "OTEL_"))]:
        del os.environ[variable]
    results: dict[str, Any] = {"machine": _describe_machine()}
    print(HEADING, flush=True)
    is_within_bounds = True
    for name in arguments.names or NAMES:
        begin = time.monotonic()
        if name in ("gateway", "server_time") and arguments.seconds is not None:
            results[name] = importlib.import_module(f"benchmarks.{name}").measure(arguments.seconds)
        elif name == "load" and arguments.full:
            results[name] = load.measure(load.FULL_SECONDS)
        else:
            results[name] = importlib.import_module(f"benchmarks.{name}").measure()
        results[name]["took_seconds"] = time.monotonic() - begin
        is_within_bounds &= all(values["held"] is not False for values in results[name]["rows"])
        print(format_rows(name, results[name]), flush=True)
    if arguments.docs:
        charts.update_page(arguments.docs, {name: result for name, result in results.items() if name != "machine"})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if is_within_bounds else 1


if __name__ == "__main__":
    sys.exit(main())
