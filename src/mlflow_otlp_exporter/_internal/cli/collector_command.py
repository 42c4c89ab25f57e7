"""`mlflow-otlp collector-config`."""

from __future__ import annotations

import argparse

from mlflow_otlp_exporter._internal.cli.collector_config import CollectorConfig, as_resource, as_yaml
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve

_SETTINGS = ("tracking_uri", "endpoint", "experiment_id", "workspace")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    command = commands.add_parser(
        "collector-config", help="print a configuration for an OpenTelemetry Collector in front of MLflow"
    )
    command.add_argument(
        "--per-tenant",
        action="store_true",
        help="each request says itself, in its headers, to which workspace and experiment it goes",
    )
    command.add_argument("--format", choices=("yaml", "resource"), default="yaml", help="plain, or for the operator")
    command.add_argument("--name", default="mlflow-collector", help="the resource's name and service account")
    command.add_argument("--namespace", help="the resource's namespace")
    command.add_argument("--tracking-uri", metavar="URL", help="MLflow's address (MLFLOW_TRACKING_URI)")
    command.add_argument("--endpoint", metavar="URL", help="MLflow's OTLP endpoint, where it is not <URL>/v1/traces")
    command.add_argument("--experiment-id", metavar="ID", help="the experiment's id (MLFLOW_EXPERIMENT_ID)")
    command.add_argument("--workspace", metavar="NAME", help="the workspace (MLFLOW_WORKSPACE)")
    command.add_argument("--token-file", metavar="FILE", help="where the Collector finds a token")
    command.add_argument("--ca-file", metavar="FILE", help="where the Collector finds the server's CA")
    command.add_argument("--compression", choices=("gzip", "none"), default="gzip", help="none for MLflow before 3.7")


def collector_config(given: argparse.Namespace) -> str:
    """The configuration that was asked for.

    Raises:
        ConfigurationError: A setting is wrong, or the experiment's id is missing.
    """
    settings = resolve({name: getattr(given, name) for name in _SETTINGS})
    config = _config(settings, given)
    if given.format == "yaml":
        return as_yaml(config)
    return as_resource(config, name=given.name, namespace=given.namespace)


def _config(settings: Settings, given: argparse.Namespace) -> CollectorConfig:
    server = settings.traces
    if not (settings.experiment_id or given.per_tenant):
        raise ConfigurationError(
            "a Collector cannot look up an experiment's name: expected --experiment-id or MLFLOW_EXPERIMENT_ID with "
            "the number that the console shows in the experiment's address"
        )
    return CollectorConfig(
        traces_url=server.url,
        experiment_id=settings.experiment_id,
        workspace=settings.workspace,
        per_tenant=given.per_tenant,
        token_file=given.token_file or server.token_file,
        # Never the secret itself: the Collector has the same variable, from a secret.
        token_variable="MLFLOW_TRACKING_TOKEN" if server.token else None,
        user_variables=(
            ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
            if server.username and server.password and not given.token_file
            else None
        ),
        certificate_file=given.ca_file or server.certificate_file,
        insecure_tls=server.insecure_tls,
        compression=given.compression,
    )
