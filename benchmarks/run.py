"""Runs benchmarks and prints a table: `python benchmarks/run.py [--json FILE] [name ...]`."""

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
from benchmarks.rows import HEADING, row, shown

# The longest last.
NAMES = (
    "import_time",
    "encoder",
    "enrichment",
    "spool",
    "traced",
    "app_thread",
    "export_path",
    "latency",
    "memory",
    "server_time",
)
_PACKAGES = ("mlflow", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "protobuf")


def _measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").measure()
    if "rows" not in found:
        found["rows"] = [row("import, median", "ms", [found["ours_ms"]], [found["theirs_ms"]])]
    return found


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def main() -> int:
    """Runs what is named, or all; 1 if a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument("--seconds", type=float, help="how long the agents of server_time run")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(NAMES)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    # Nothing of the caller's environment points an exporter anywhere.
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "OTEL_"))]:
        del os.environ[variable]
    results: dict[str, Any] = {"machine": _machine()}
    print(HEADING, flush=True)
    held = True
    for name in given.names or NAMES:
        begin = time.monotonic()
        if name == "server_time" and given.seconds is not None:
            results[name] = importlib.import_module("benchmarks.server_time").measure(given.seconds)
        else:
            results[name] = _measured(name)
        results[name]["took_seconds"] = time.monotonic() - begin
        held = held and all(found["held"] is not False for found in results[name]["rows"])
        print(shown(name, results[name]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
