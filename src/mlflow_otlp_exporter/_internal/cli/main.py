"""`mlflow-otlp`: the command line."""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow_otlp_exporter._internal.cli import spool
from mlflow_otlp_exporter._internal.cli.run import run
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.describe import describe_settings, describe_unknown_variables
from mlflow_otlp_exporter._internal.config.models import GatewaySettings
from mlflow_otlp_exporter._internal.config.resolver import resolve, resolve_gateway
from mlflow_otlp_exporter._internal.config.schema import fields_of
from mlflow_otlp_exporter._internal.version import __version__

_SETTINGS_NOTE = (
    "These are the settings of configure() and `mlflow-otlp run`. By default, MLflowSpanExporter()\n"
    "has create_experiment, spool, handle_sigterm and compact off."
)
_TARGET_SETTINGS = ("tracking_uri", "endpoint", "workspace", "experiment", "experiment_id")

# Files in `collector_configs/`. The Collector fills in `${env:NAME}`, so a printed configuration holds no secret.
COLLECTOR_CONFIGS = {
    "fixed": "one destination, with a bearer token",
    "fixed-basic-auth": "one destination, with user and password",
    "fixed-no-auth": "one destination, without a credential",
    "per-tenant": "each request names its workspace and experiment in its headers",
    "operator": "the same as per-tenant, as a resource of the OpenTelemetry Operator",
    "sidecar": "the same as fixed, for a container in the app's pod",
    "gateway": "in front of the replicas of `mlflow-otlp gateway`",
}


def _print_settings() -> int:
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    rows = list(describe_settings(resolve({}, defaults=DEFAULTS)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())
    print(f"\n{_SETTINGS_NOTE}")
    for line in describe_unknown_variables(os.environ):
        print(f"mlflow-otlp: {add_code(MessageCode.INVALID_SETTING, line)}", file=sys.stderr)
    return 0


def _target_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _TARGET_SETTINGS}


def _run_doctor(options: argparse.Namespace) -> int:
    # Imported here, as in the other commands, because only this command needs them.
    from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckStatus
    from mlflow_otlp_exporter._internal.cli.doctor.server_checks import run_checks
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    results = []
    for result in run_checks(_target_settings(options), os.environ, DEFAULTS):
        results.append(result)
        if not options.json:
            print("\n".join(result.lines()), flush=True)
    failed_steps = [result.step for result in results if result.status is CheckStatus.FAILED]
    if options.json:
        print(json.dumps({"works": not failed_steps, "steps": [result.as_json() for result in results]}, indent=2))
    elif failed_steps:
        print(f"\nIt does not work: {', '.join(failed_steps)}. See docs/troubleshooting.md for the codes.")
    else:
        print("\nIt works.")
    return 1 if failed_steps else 0


def _send(options: argparse.Namespace) -> int:
    from mlflow_otlp_exporter._internal.cli.send import send_file, send_test
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    settings = resolve(_target_settings(options), defaults=DEFAULTS)
    lines: Iterable[tuple[bool, str]] = send_test(settings) if options.test else send_file(settings, options.file)
    status = 0
    for is_success, line in lines:
        print(line, file=sys.stdout if is_success else sys.stderr)
        status = status if is_success else 1
    return status


def _run_gateway(options: argparse.Namespace) -> int:
    try:
        from mlflow_otlp_exporter._internal.gateway.server import DEFAULTS, run_gateway
    except ModuleNotFoundError as error:
        message = f"the gateway needs {error.name}: install mlflow-otlp-exporter[gateway]"
        raise ConfigurationError(message) from None
    arguments = {setting.name: getattr(options, setting.name) for setting in fields_of(GatewaySettings)}
    return run_gateway(resolve(_target_settings(options), defaults=DEFAULTS), resolve_gateway(arguments))


def read_collector_config(name: str) -> str:
    """The text of a configuration, for `otelcol-contrib --config FILE`, or for `kubectl apply` (`operator`)."""
    folder = importlib.resources.files("mlflow_otlp_exporter._internal.cli").joinpath("collector_configs")
    return folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    for name in _TARGET_SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", help="overrides the environment")


def _add_collector_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "collector-config",
        help="print a configuration for an OpenTelemetry Collector in front of MLflow",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    command.add_argument(
        "name",
        nargs="?",
        choices=COLLECTOR_CONFIGS,
        default="fixed",
        metavar="name",
        help="\n".join(f"{name}: {summary}" for name, summary in COLLECTOR_CONFIGS.items()) + "\n(default: fixed)",
    )


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlflow-otlp", description="Send traces to MLflow with plain OpenTelemetry.")
    parser.add_argument("--version", action="version", version=f"mlflow-otlp-exporter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    commands.add_parser("settings", help="print all settings and where each value comes from; secrets are hidden")
    doctor = commands.add_parser("doctor", help="check each step, from the settings to a test trace in MLflow")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    _add_target_arguments(doctor)
    send = commands.add_parser("send", help="send OTLP data from a file, or a test trace, to MLflow")
    content = send.add_mutually_exclusive_group(required=True)
    content.add_argument("file", nargs="?", type=Path, help="OTLP traces: protobuf, JSON, or one JSON object per line")
    content.add_argument("--test", action="store_true", help="send a test trace instead of a file")
    _add_target_arguments(send)
    run_parser = commands.add_parser("run", help="run a command such as `python app.py`, and send its traces to MLflow")
    run_parser.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="the command and its arguments")
    spool.add_command(commands)
    gateway = commands.add_parser(
        "gateway", help="receive traces of other processes over OTLP, and send them to MLflow"
    )
    for setting in fields_of(GatewaySettings):
        option = setting.name.removeprefix("gateway_").replace("_", "-")
        # A flag may have a value, too.
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.default is False else {}
        gateway.add_argument(f"--{option}", dest=setting.name, help=f"overrides {setting.variables[0]}", **flag)
    _add_target_arguments(gateway)
    _add_collector_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `arguments` default to `sys.argv`.

    Returns the exit status: 0; 1 if a check or delivery fails, an action is not done, or the output cannot be written;
    2 for a wrong setting or a wrong command line.
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
    options = _create_parser().parse_args(arguments)
    try:
        match options.command:
            case "run":
                return run(options.words)
            case "doctor":
                return _run_doctor(options)
            case "collector-config":
                print(read_collector_config(options.name), end="")
                return 0
            case "spool":
                return spool.run_action(options)
            case "send":
                return _send(options)
            case "gateway":
                return _run_gateway(options)
            case _:
                return _print_settings()
    except ConfigurationError as error:
        print(f"mlflow-otlp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
