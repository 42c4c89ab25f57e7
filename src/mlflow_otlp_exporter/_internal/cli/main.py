"""`mlflow-otlp`: the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow_otlp_exporter._internal.cli.collector import add_collector_command, read_config
from mlflow_otlp_exporter._internal.cli.run import run
from mlflow_otlp_exporter._internal.cli.spool import act as act_on_spool
from mlflow_otlp_exporter._internal.cli.spool import add_to as add_spool_to
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.describe import describe_settings, describe_unknown_variables
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.version import __version__

_WHOSE = (
    "These are configure()'s. `mlflow-otlp run` has handle_sigterm off by default; an exporter made by hand "
    "create_experiment,\nspool and compact, too."
)
_TARGET = ("tracking_uri", "endpoint", "workspace", "experiment", "experiment_id")


def _settings() -> int:
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    rows = list(describe_settings(resolve({}, defaults=DEFAULTS)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())
    print(f"\n{_WHOSE}")
    for line in describe_unknown_variables(os.environ):
        print(f"mlflow-otlp: {add_code(MessageCode.INVALID_SETTING, line)}", file=sys.stderr)
    return 0


def _target(given: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(given, name) for name in _TARGET}


def _doctor(given: argparse.Namespace) -> int:
    # Here, as in the other commands: no app needs it.
    from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckStatus
    from mlflow_otlp_exporter._internal.cli.doctor.server_checks import run_checks
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    findings = []
    for finding in run_checks(_target(given), os.environ, DEFAULTS):
        findings.append(finding)
        if not given.json:
            print("\n".join(finding.lines()), flush=True)
    failed = [finding.step for finding in findings if finding.state is CheckStatus.FAILED]
    if given.json:
        print(json.dumps({"works": not failed, "steps": [finding.as_json() for finding in findings]}, indent=2))
    elif failed:
        print(f"\nIt does not work: {', '.join(failed)}. See docs/troubleshooting.md for the codes.")
    else:
        print("\nIt works.")
    return 1 if failed else 0


def _send(given: argparse.Namespace) -> int:
    from mlflow_otlp_exporter._internal.cli.send import send_file, send_test
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    settings = resolve(_target(given), defaults=DEFAULTS)
    lines: Iterable[tuple[bool, str]] = send_test(settings) if given.test else send_file(settings, given.file)
    good = True
    for is_good, line in lines:
        good = good and is_good
        print(line, file=sys.stdout if is_good else sys.stderr)
    return 0 if good else 1


def _add_target(parser: argparse.ArgumentParser) -> None:
    for name in _TARGET:
        parser.add_argument(f"--{name.replace('_', '-')}", help="instead of what the environment says")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlflow-otlp", description="Traces into MLflow with plain OpenTelemetry.")
    parser.add_argument("--version", action="version", version=f"mlflow-otlp-exporter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    commands.add_parser("settings", help="the settings in force here, and where each comes from; secrets are hidden")
    doctor = commands.add_parser("doctor", help="what works and what does not, from the settings to a trace in MLflow")
    doctor.add_argument("--json", action="store_true", help="for programs")
    _add_target(doctor)
    sending = commands.add_parser("send", help="recorded OTLP, or a test trace, into MLflow")
    what = sending.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, help="OTLP traces: protobuf, JSON, or a line of JSON each")
    what.add_argument("--test", action="store_true", help="a test trace instead of a file")
    _add_target(sending)
    running = commands.add_parser("run", help="run a command, such as `python app.py`, with its traces sent to MLflow")
    running.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="the command and its arguments")
    add_spool_to(commands)
    add_collector_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The command line's words; `sys.argv` if None.

    Returns:
        The exit status: 0; 1 if something does not work or was not done, or if the output cannot be written; 2 for a
        wrong setting or a wrong command line.
    """
    try:
        try:
            return _run_command(arguments)
        finally:
            # Here, because at exit a failed flush ends with a traceback and status 120. Also after --help, which raises
            # SystemExit.
            _flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader such as `head` closes the pipe when it has read enough
            with suppress(OSError):
                print(f"mlflow-otlp: {error}", file=sys.stderr)
        _discard_output()
        return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None if the process started with the stream closed
            stream.flush()


def _discard_output() -> None:
    """Redirects what cannot be written to the null device, so that the flush at exit succeeds."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run_command(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    try:
        return _done(given)
    except ConfigurationError as error:
        print(f"mlflow-otlp: {error}", file=sys.stderr)
        return 2


def _done(given: argparse.Namespace) -> int:
    """The exit status of a command."""
    if given.command == "run":
        return run(given.words)
    if given.command == "doctor":
        return _doctor(given)
    if given.command == "collector-config":
        print(read_config(given.name), end="")
        return 0
    if given.command == "spool":
        return act_on_spool(given)
    return _send(given) if given.command == "send" else _settings()


if __name__ == "__main__":
    sys.exit(main())
