"""`mlflow-otlp run python app.py`: send the traces of an application to MLflow without a change of its code."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from mlflow_otlp_exporter._internal.config.describe import describe_unknown_variables, summarize_settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.setup.instrumentation import Instrumentation, find_instrumentations

_AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"
_NOT_INSTALLED = "OpenTelemetry's auto-instrumentation is not installed: pip install 'mlflow-otlp-exporter[auto]'"
_LIMIT_VARIABLE = "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"
# MLflow accepts only traces. The distro's default exporters for metrics and logs are not installed, which would disable
# all exporters.
_DEFAULTS = {"OTEL_TRACES_EXPORTER": "mlflow", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def select_variables(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables to add to the environment of the command, and warnings about existing ones."""
    existing = {name: value.strip() for name, value in environment.items() if value.strip()}
    if "OTEL_CONFIG_FILE" in existing:
        file = existing["OTEL_CONFIG_FILE"]
        return {}, [f"OTEL_CONFIG_FILE is {file}: this file selects the exporters, expected an exporter `mlflow` in it"]
    variables = {name: value for name, value in _DEFAULTS.items() if name not in existing}
    if _LIMIT_VARIABLE not in existing and "OTEL_ATTRIBUTE_COUNT_LIMIT" not in existing:
        variables[_LIMIT_VARIABLE] = "10000"  # like configure(): a conversation has more than OpenTelemetry's 128
    if missing := find_missing_exporter(existing):
        return variables, [f"{missing}: expected mlflow"]
    exporters = existing.get("OTEL_TRACES_EXPORTER", "mlflow")
    if "mlflow" in [name.strip() for name in exporters.split(",")]:
        return variables, []
    warning = f"OTEL_TRACES_EXPORTER is {exporters!r}, without mlflow: expected mlflow or {exporters},mlflow"
    return variables, [warning]


def find_missing_exporter(environment: Mapping[str, str]) -> str:
    """Describe the exporter of `OTEL_TRACES_EXPORTER` that is not installed, which disables all exporters."""
    exporters = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    names = [name.strip() for name in exporters.split(",") if name.strip() not in ("", "none")]
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = "otlp_proto_http" if (protocol or "").strip() == "http/protobuf" else "otlp_proto_grpc"
    for name in names:
        if not list(entry_points(group="opentelemetry_traces_exporter", name=otlp if name == "otlp" else name)):
            package = f" ({otlp})" if name == "otlp" else ""
            return f"OTEL_TRACES_EXPORTER is {exporters!r}, but no exporter {name!r}{package} is installed"
    return ""


def warn_duplicates(instrumentations: Iterable[Instrumentation]) -> list[str]:
    """Return warnings about libraries with several instrumentations, which OpenTelemetry enables all."""
    packages: dict[str, list[str]] = {}
    for candidate in instrumentations:
        packages.setdefault(candidate.library, []).append(candidate.package)
    return [
        f"{library} has several instrumentations ({', '.join(sorted(names))}), so each call creates several spans: "
        "uninstall all but one"
        for library, names in sorted(packages.items())
        if len(names) > 1
    ]


def warn_missing(instrumentations: Collection[Instrumentation]) -> list[str]:
    warning = "no instrumentation is installed, so only the application's own spans are sent; see `mlflow-otlp doctor`"
    return [] if instrumentations else [warning]


def find_command(name: str) -> str | None:
    """Return the path of a command; that of this environment, also if the environment is not activated.

    A Python of another environment would print "Error in sitecustomize", and send nothing.
    """
    path = shutil.which(name)
    own_path = shutil.which(name, path=str(Path(sys.executable).parent))
    if own_path is None or path is None or os.path.dirname(name):  # noqa: PTH120 - "./x" is a path, too
        return path or own_path
    if Path(path).parent == Path(own_path).parent or (name.startswith("python") and _has_library(path)):
        return path
    return own_path


def _has_library(python: str) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mlflow_otlp_exporter') is None)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, timeout=10, check=False)  # noqa: S603 - of PATH
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def run(command: Sequence[str]) -> int:
    """Replace this process by the command with OpenTelemetry's auto-instrumentation; a Python file alone is a command.

    Returns the exit status if the command cannot be started: 2, or 127 if it does not exist.
    """
    words = list(command)
    if words and words[0].endswith(".py"):
        words.insert(0, sys.executable)
    if not words:
        return _fail("expected a command: mlflow-otlp run python app.py", 2)
    if importlib.util.find_spec("opentelemetry.instrumentation") is None or not list(
        entry_points(group="opentelemetry_configurator")
    ):
        return _fail(_NOT_INSTALLED, 2)
    path = find_command(words[0])
    if path is None:
        return _fail(f"command {words[0]!r} not found", 127)
    if path != shutil.which(words[0]):
        # As an activated environment would: the command may start others.
        os.environ["PATH"] = os.pathsep.join(filter(None, (str(Path(path).parent), os.environ.get("PATH"))))
        _print(f"using {path}, of the environment in which mlflow-otlp is installed")
    variables, warnings = select_variables(os.environ)
    _print(f"sending traces to {summarize_settings(resolve({}))}")
    if variables:
        _print("added environment variables: " + " ".join(f"{name}={value}" for name, value in variables.items()))
    installed = find_instrumentations()
    warnings += [*warn_duplicates(installed), *warn_missing(installed)]
    for warning in [*describe_unknown_variables(os.environ), *warnings]:
        _print(f"warning: {warning}")
    os.environ.update(variables)
    # The function of `opentelemetry-instrument`, which reads sys.argv and replaces this process.
    sys.argv = ["opentelemetry-instrument", *words]
    importlib.import_module(_AUTO_INSTRUMENTATION).run()
    return _fail("the command could not be started", 2)


def _fail(message: str, status: int) -> int:
    _print(message)
    return status


def _print(message: str) -> None:
    with suppress(OSError):  # the command is started even if stderr is a broken pipe or a full disk
        print(f"mlflow-otlp: {message}", file=sys.stderr, flush=True)
