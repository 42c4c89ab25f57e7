"""An outcome as a message: address, the server's message, and the fix of its code."""

from __future__ import annotations

from typing import Protocol

from mlflow_otlp_exporter._internal.common.hints import add_fix
from mlflow_otlp_exporter._internal.config.models import SettingGroup, Settings
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.authorization import Authorization


class Server(Protocol):
    """What a message needs of the server: `Connection`."""

    address: str
    credentials: Authorization
    unused_variables: tuple[str, ...]


def format_outcome(outcome: ExportOutcome, server: Server, settings: Settings) -> str:
    message = f"{server.address}: {outcome.message}"
    if outcome.cause is FailureKind.CREDENTIALS:
        message += f"; credentials: {server.credentials}"
        if server.unused_variables:
            message += f"; not used, because set for another server: {', '.join(server.unused_variables)}"
        in_pod = settings.traces.group is SettingGroup.MLFLOW and ServiceAccount.read(settings.service_account_dir)
        if in_pod and str(server.credentials).startswith("none"):
            message += "; MLFLOW_TRACKING_AUTH=kubernetes would send the token of the pod's service account"
    return add_fix(outcome.code, message)
