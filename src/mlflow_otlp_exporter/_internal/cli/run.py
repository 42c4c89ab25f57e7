"""`mlflow-otlp run python app.py`: the traces of an app into MLflow, without a line of code or a variable to know."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points

from mlflow_otlp_exporter._internal.config.describe import describe_unknown_variables, summarize_settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.setup.instrumentation import Instrumentation, find_instrumentations

_INSTRUMENT = "opentelemetry.instrumentation.auto_instrumentation"
_MISSING = "OpenTelemetry's auto-instrumentation is not installed: pip install 'mlflow-otlp-exporter[auto]'"
_ATTRIBUTES = "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"
# MLflow takes traces only, and what the distro would export the rest with is not installed, which would switch off all.
_DEFAULTS = {"OTEL_TRACES_EXPORTER": "mlflow", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def variables_for(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """What is to be set for the app, and what is to be said about what is set already.

    Args:
        environment: The environment.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    if "OTEL_CONFIG_FILE" in given:
        said = (
            f"OTEL_CONFIG_FILE is {given['OTEL_CONFIG_FILE']}: it says where traces go, expected an exporter `mlflow`"
        )
        return {}, [said]
    found = {name: value for name, value in _DEFAULTS.items() if name not in given}
    if _ATTRIBUTES not in given and "OTEL_ATTRIBUTE_COUNT_LIMIT" not in given:
        found[_ATTRIBUTES] = "10000"  # as configure() has it: a conversation has more than OpenTelemetry's 128
    chosen = given.get("OTEL_TRACES_EXPORTER", "mlflow")
    if "mlflow" not in [word.strip() for word in chosen.split(",")]:
        return found, [
            f"OTEL_TRACES_EXPORTER is {chosen!r}: no traces go to MLflow, expected mlflow or {chosen},mlflow"
        ]
    return found, []


def doubles(found: Iterable[Instrumentation]) -> list[str]:
    """What is said about libraries that several instrumentations are for: OpenTelemetry switches on all of them."""
    libraries: dict[str, list[Instrumentation]] = {}
    for candidate in found:
        libraries.setdefault(candidate.library, []).append(candidate)
    return [
        f"{library} is instrumented by {' and '.join(sorted(each.package for each in several))}, so that each call "
        "makes several spans: uninstall all but one"
        for library, several in sorted(libraries.items())
        if len(several) > 1
    ]


def lacking(found: Collection[Instrumentation]) -> list[str]:
    """What is said where no instrumentation is installed at all."""
    said = "no instrumentation is installed: only spans that the app makes itself are sent; see `mlflow-otlp doctor`"
    return [] if found else [said]


def run(command: Sequence[str]) -> int:
    """Runs a command with OpenTelemetry's auto-instrumentation, in the place of this process.

    Args:
        command: The command and its arguments; a Python file alone is run with this Python.

    Returns:
        The exit status, if the command could not be run: 2, or 127 if there is no such command.

    Raises:
        ConfigurationError: A variable is wrong.
    """
    words = list(command)
    if words and words[0].endswith(".py"):
        words.insert(0, sys.executable)
    if not words:
        return _refused("expected a command: mlflow-otlp run python app.py", 2)
    if importlib.util.find_spec("opentelemetry.instrumentation") is None or not list(
        entry_points(group="opentelemetry_configurator")
    ):
        return _refused(_MISSING, 2)
    if shutil.which(words[0]) is None:
        return _refused(f"there is no command {words[0]!r}", 127)
    variables, warnings = variables_for(os.environ)
    _say(f"traces go to {summarize_settings(resolve({}))}")
    if variables:
        _say("set for the app: " + " ".join(f"{name}={value}" for name, value in variables.items()))
    found = find_instrumentations()
    for warning in [*describe_unknown_variables(os.environ), *warnings, *doubles(found), *lacking(found)]:
        _say(f"warning: {warning}")
    os.environ.update(variables)
    # The function behind `opentelemetry-instrument`, which reads the command line and replaces this process.
    sys.argv = ["opentelemetry-instrument", *words]
    importlib.import_module(_INSTRUMENT).run()
    return _refused("the command could not be run", 2)


def _refused(message: str, status: int) -> int:
    _say(message)
    return status


def _say(message: str) -> None:
    with suppress(OSError):  # the command runs also if its stderr is a broken pipe or a full disk
        print(f"mlflow-otlp: {message}", file=sys.stderr, flush=True)
