"""An outcome in words: where, what the server said, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount
from mlflow_otlp_exporter._internal.config.setting import SettingGroup
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.authorization import Authorization

_ADVICE = {
    FailureKind.CREDENTIALS: "check the token, its file, or user and password",
    FailureKind.DESTINATION: "check experiment, workspace, and the permission to write there",
    FailureKind.NOT_MLFLOW: "check the address: it should be that of an MLflow server with a database (3.6 or newer)",
    FailureKind.SERVER: "check that the server is up",
    FailureKind.SIZE: "let the proxy in front of MLflow accept larger bodies",
    FailureKind.CONTENT: "the server is up, but refuses this content: see its message, or its own log",
}
# Where the cause alone would send people to the wrong place: what the doctor says.
_BY_CODE = frozenset(
    {
        MessageCode.NAME_NOT_RESOLVED,
        MessageCode.CONNECTION_REFUSED,
        MessageCode.CERTIFICATE_UNTRUSTED,
        MessageCode.CERTIFICATE_EXPIRED,
        MessageCode.CERTIFICATE_HOST_MISMATCH,
        MessageCode.NOT_TLS,
        MessageCode.TLS_REQUIRED,
        MessageCode.PROXY,
        MessageCode.REDIRECTED,
        MessageCode.HTML_PAGE,
        MessageCode.FILE_STORE,
        MessageCode.HOST_NOT_ALLOWED,
        MessageCode.WORKSPACES_DISABLED,
    }
)


class Server(Protocol):
    """What is said about the server: `Connection`."""

    address: str
    credentials: Authorization
    unused_variables: tuple[str, ...]


def format_outcome(outcome: ExportOutcome, server: Server, settings: Settings) -> str:
    """An outcome in words, with its code.

    Args:
        outcome: What became of a request.
        server: Where it went.
        settings: All settings.
    """
    if outcome.code in _BY_CODE:
        from mlflow_otlp_exporter._internal.common.hints import hint_for  # only for errors

        advice = hint_for(outcome.code).fix
    else:
        advice = "; ".join(_advice(outcome.cause or FailureKind.SERVER, server, settings))
    return add_code(outcome.code, f"{server.address}: {outcome.message}; {advice}")


def _advice(cause: FailureKind, server: Server, settings: Settings) -> Iterator[str]:
    if cause is FailureKind.CREDENTIALS:
        yield f"credentials: {server.credentials}"
    yield _ADVICE[cause]
    if cause is not FailureKind.CREDENTIALS:
        return
    if server.unused_variables:
        names = ", ".join(server.unused_variables)
        yield f"{names} not used: set for another server than the one that spans are sent to"
    in_pod = settings.traces.group is SettingGroup.MLFLOW and ServiceAccount.found_in(settings.service_account_dir)
    if in_pod and str(server.credentials).startswith("none"):
        yield "MLFLOW_TRACKING_AUTH=kubernetes sends the token of the pod's service account here, too"
