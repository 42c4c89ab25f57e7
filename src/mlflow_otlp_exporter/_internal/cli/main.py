"""`mlflow-otlp`: the command line."""

from __future__ import annotations

import argparse
import importlib
import importlib.resources
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow_otlp_exporter._internal.cli import spool
from mlflow_otlp_exporter._internal.cli.output import page_url, paint, replace_unencodable
from mlflow_otlp_exporter._internal.cli.run import run
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.describe import describe_settings, describe_unknown_variables
from mlflow_otlp_exporter._internal.config.models import GatewaySettings
from mlflow_otlp_exporter._internal.config.resolver import resolve, resolve_gateway
from mlflow_otlp_exporter._internal.config.schema import BY_NAME, fields_of
from mlflow_otlp_exporter._internal.version import __version__

_SETTINGS_NOTE = (
    "These are the settings of configure() and `mlflow-otlp run`. By default, MLflowSpanExporter()\n"
    "has create_experiment, spool, handle_sigterm and compact off."
)
_EXIT_CODES = """\
exit status:
  0      done; also of a dry run
  1      a check failed, spans were not delivered, or the output could not be written
  2      wrong command line or setting, or an error of this library
  127    the command of `run` or `record` was not found
  130    interrupted by Ctrl-C
  run and record pass on the status of the command; 128 and its number after a signal"""
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


def _print_settings(options: argparse.Namespace) -> int:
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    rows = list(describe_settings(resolve({}, defaults=DEFAULTS)))
    if options.json:
        print(json.dumps([dict(zip(("name", "value", "source"), row, strict=True)) for row in rows], indent=2))
    else:
        # The first two rows are the addresses.
        changed = rows[:2] + [row for row in rows[2:] if row[2] != "default"]
        others = [row for row in rows[2:] if row[2] == "default"]
        shown = changed + (others if options.all else [])
        widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
        for name, value, source in shown:
            print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}".rstrip())
        if not options.all:
            print(f"\n{len(others)} other settings have their defaults: mlflow-otlp settings --all")
        print(f"\n{_SETTINGS_NOTE}")
    for line in describe_unknown_variables(os.environ):
        print(f"mlflow-otlp: {add_code(MessageCode.INVALID_SETTING, line)}", file=sys.stderr)
    return 0


def _target_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _TARGET_SETTINGS}


def _run_doctor(options: argparse.Namespace) -> int:
    # Imported here, as in the other commands, because only this command needs them.
    from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckStatus, create_failure
    from mlflow_otlp_exporter._internal.cli.doctor.server_checks import run_checks
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    results, has_crashed = [], False
    checks = run_checks(_target_settings(options), os.environ, DEFAULTS)
    while not has_crashed:
        try:
            result = next(checks, None)
        except Exception as error:  # noqa: BLE001 - programs read the output, which must stay complete
            has_crashed, code = True, MessageCode.INTERNAL_ERROR
            traceback.print_exc()
            result = create_failure("doctor", code, f"an error of the doctor itself: {type(error).__name__}")
        if result is None:
            break
        results.append(result)
        if not options.json and not result.is_consequence:
            print("\n".join(result.lines()), flush=True)
    skipped_steps = [result.step for result in results if result.is_consequence]
    failed_steps = [result.step for result in results if result.status is CheckStatus.FAILED]
    if options.json:
        print(json.dumps({"works": not failed_steps, "steps": [result.as_json() for result in results]}, indent=2))
    elif failed_steps:
        if skipped_steps:
            print(paint(f"{'skipped':13}  {', '.join(skipped_steps)}", "dim"))
        print(f"\nIt does not work: {', '.join(failed_steps)}. For the codes, see {page_url('troubleshooting')}")
    elif any(result.step == "read back" and result.status is not CheckStatus.OK for result in results):
        print("\nThe endpoint takes traces. Whether they reach MLflow is unknown: see `read back` above.")
    else:
        print(f"\nIt works. If traces are missing, see {page_url('troubleshooting')}")
    if has_crashed:
        return 2
    return 1 if failed_steps else 0


def _send(options: argparse.Namespace) -> int:
    from mlflow_otlp_exporter._internal.cli.send import send_file, send_test
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    settings = resolve(_target_settings(options), defaults=DEFAULTS)
    lines = send_test(settings) if options.test else send_file(settings, options.file, report_progress=not options.json)
    results = []
    for is_success, line in lines:
        results.append((is_success, line))
        if not options.json:
            print(line, file=sys.stdout if is_success else sys.stderr)
    is_delivered = all(is_success for is_success, _ in results)
    if options.json:
        messages = [{"ok": is_success, "message": line} for is_success, line in results]
        print(json.dumps({"delivered": is_delivered, "messages": messages}, indent=2))
    return 0 if is_delivered else 1


def _show(options: argparse.Namespace) -> int:
    from mlflow_otlp_exporter._internal.cli.show import TRACE_ID, fetch_trace, read_traces
    from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS

    match = TRACE_ID.fullmatch(options.source)
    # A file needs no server.
    settings = resolve(_target_settings(options) if match else {"tracking_uri": "http://localhost"}, defaults=DEFAULTS)
    is_trace = match is not None and not Path(options.source).exists()
    traces = fetch_trace(settings, match[1]) if match and is_trace else read_traces(settings, Path(options.source))
    if options.json:
        print(json.dumps([trace.as_json() for trace in traces], indent=2))
        return 0
    for index, trace in enumerate(traces):
        print("\n".join(([""] if index else []) + list(trace.lines())))
    return 0


def _record(options: argparse.Namespace) -> int:
    from mlflow_otlp_exporter._internal.cli.record import record

    return record(options.file, options.words)


def _run_gateway(options: argparse.Namespace) -> int:
    # gRPC's own lines, such as about clients that speak no TLS, are no JSON. It reads the variable when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
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


def _print_collector_config(options: argparse.Namespace) -> int:
    print(read_collector_config(options.name), end="")
    return 0


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    for name in _TARGET_SETTINGS:
        variables = BY_NAME[name].variables
        help_text = f"overrides {variables[0]}" if variables else "overrides the environment"
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_text)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlflow-otlp",
        description="Send traces to MLflow with plain OpenTelemetry.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlflow-otlp-exporter {__version__}")
    parser.set_defaults(help_parser=parser)
    commands = parser.add_subparsers(metavar="command", dest="command")

    def add(actions: Any, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
        """Add a command with its summary, which is also its description, and examples."""
        epilog = "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None
        command: argparse.ArgumentParser = (actions or commands).add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        command.set_defaults(help_parser=command)
        return command

    settings = add(
        None,
        "settings",
        "print the settings that are not defaults, and where each value comes from; secrets are hidden",
        "mlflow-otlp settings --all",
    )
    settings.add_argument("--all", action="store_true", help="also print the settings that have their defaults")
    doctor = add(
        None,
        "doctor",
        "check each step, from the settings to a test trace in MLflow",
        "mlflow-otlp doctor",
        "mlflow-otlp doctor --tracking-uri http://localhost:5000 --json",
    )
    send = add(
        None,
        "send",
        "send OTLP data from a file, or a test trace, to MLflow",
        "mlflow-otlp send --test",
        "mlflow-otlp send traces.jsonl --experiment agents",
    )
    content = send.add_mutually_exclusive_group(required=True)
    content.add_argument("file", nargs="?", type=Path, help="OTLP traces: protobuf, JSON, or one JSON object per line")
    content.add_argument("--test", action="store_true", help="send a test trace instead of a file")
    run_parser = add(
        None,
        "run",
        "run a command such as `python app.py`, and send its traces to MLflow",
        "mlflow-otlp run python app.py",
        "mlflow-otlp run gunicorn app:app",
    )
    run_parser.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="the command and its arguments")
    record = add(
        None,
        "record",
        "run a command, and keep the traces that it exports in a file",
        "mlflow-otlp record traces.jsonl -- python app.py",
        "mlflow-otlp record case.pb -- mlflow-otlp run python app.py",
    )
    record.add_argument("file", type=Path, help="JSON lines, or protobuf if it ends with .pb; it is overwritten")
    record.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="the command and its arguments")
    show = add(
        None,
        "show",
        "print the traces of a file, or a trace in MLflow, as the console shows them",
        "mlflow-otlp show traces.jsonl",
        "mlflow-otlp show tr-0af7651916cd43dd8448eb211c80319c",
    )
    show.add_argument("source", metavar="FILE|ID", help="a file as of `record`, or the id of a trace in MLflow")
    spool.add_command(add)
    gateway = add(
        None,
        "gateway",
        "receive traces of other processes over OTLP, and send them to MLflow",
        "mlflow-otlp gateway --listen 0.0.0.0:4318",
    )
    for setting in fields_of(GatewaySettings):
        option = setting.name.removeprefix("gateway_").replace("_", "-")
        # A flag may have a value, too.
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.default is False else {}
        gateway.add_argument(f"--{option}", dest=setting.name, help=f"overrides {setting.variables[0]}", **flag)
    collector = add(
        None,
        "collector-config",
        "print a configuration for an OpenTelemetry Collector in front of MLflow",
        "mlflow-otlp collector-config per-tenant > collector.yaml",
    )
    collector.add_argument(
        "name",
        nargs="?",
        choices=COLLECTOR_CONFIGS,
        default="fixed",
        metavar="name",
        help="\n".join(f"{name}: {summary}" for name, summary in COLLECTOR_CONFIGS.items()) + "\n(default: fixed)",
    )
    for command in (settings, doctor, send, show):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (doctor, send, show, gateway):
        _add_target_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `arguments` default to `sys.argv`.

    Returns the exit status; see `mlflow-otlp --help`.
    """
    replace_unencodable()
    try:
        try:
            return _run_command(arguments)
        finally:
            # Here, because at exit a failed flush ends with a traceback and status 120. Also after --help, which raises
            # SystemExit.
            _flush()
    except KeyboardInterrupt:
        # Python ends by the signal, as a shell expects of an interrupted command. There is no traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.excepthook = lambda *_: None
        raise
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


_ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "settings": _print_settings,
    "doctor": _run_doctor,
    "send": _send,
    "run": lambda options: run(options.words),
    "record": _record,
    "show": _show,
    "spool": spool.run_action,
    "gateway": _run_gateway,
    "collector-config": _print_collector_config,
}


def _run_command(arguments: Sequence[str] | None) -> int:
    parser = create_parser()
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):
            importlib.import_module("argcomplete").autocomplete(parser)  # of the extra `completion`
    options = parser.parse_args(arguments)
    if options.command is None or getattr(options, "action", "") is None:
        options.help_parser.print_help()
        return 0
    try:
        return _ACTIONS[options.command](options)
    except ConfigurationError as error:
        print(f"mlflow-otlp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
