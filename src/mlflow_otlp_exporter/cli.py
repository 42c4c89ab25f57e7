"""`mlflow-otlp`: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mlflow_otlp_exporter._errors import ConfigurationError
from mlflow_otlp_exporter._run import run
from mlflow_otlp_exporter._settings import resolve
from mlflow_otlp_exporter._shown import shown
from mlflow_otlp_exporter._version import __version__


def _settings() -> int:
    rows = list(shown(resolve({})))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The command line's words; `sys.argv` if None.

    Returns:
        The exit status: 0; 2 for a wrong setting or a wrong command line.
    """
    parser = argparse.ArgumentParser(prog="mlflow-otlp", description="Traces into MLflow with plain OpenTelemetry.")
    parser.add_argument("--version", action="version", version=f"mlflow-otlp-exporter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    commands.add_parser("settings", help="the settings in force here, and where each comes from; secrets are hidden")
    running = commands.add_parser("run", help="run a command, such as `python app.py`, with its traces sent to MLflow")
    running.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="the command and its arguments")
    given = parser.parse_args(arguments)
    try:
        return run(given.words) if given.command == "run" else _settings()
    except ConfigurationError as error:
        print(f"mlflow-otlp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
