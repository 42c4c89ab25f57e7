"""`mlflow-otlp collector-config`: prints configurations for an OpenTelemetry Collector in front of MLflow.

The configurations are the files in `collector_configs/`. The Collector itself fills in `${env:NAME}`, so a printed
configuration holds no secret.
"""

from __future__ import annotations

import argparse
import importlib.resources

CONFIGS = {
    "fixed": "one destination, with a bearer token",
    "fixed-basic-auth": "one destination, with user and password",
    "fixed-no-auth": "one destination, without a credential",
    "per-tenant": "each request names its workspace and experiment in its headers",
    "operator": "the same as per-tenant, as a resource of the OpenTelemetry Operator",
}


def add_collector_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "collector-config",
        help="print a configuration for an OpenTelemetry Collector in front of MLflow",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    command.add_argument(
        "name",
        nargs="?",
        choices=CONFIGS,
        default="fixed",
        metavar="name",
        help="\n".join(f"{name}: {summary}" for name, summary in CONFIGS.items()) + "\n(default: fixed)",
    )


def read_config(name: str) -> str:
    """The text of a configuration, for `otelcol-contrib --config FILE`, or for `kubectl apply` (`operator`)."""
    folder = importlib.resources.files("mlflow_otlp_exporter._internal.cli").joinpath("collector_configs")
    return folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
