"""An outcome in words: where, what the server said, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mlflow_otlp_exporter._internal.common.codes import Code, coded
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount
from mlflow_otlp_exporter._internal.config.setting import Group
from mlflow_otlp_exporter._internal.transport.authorization import Credentials
from mlflow_otlp_exporter._internal.transport.response import Cause, Outcome

_ADVICE = {
    Cause.CREDENTIALS: "check the token, its file, or user and password",
    Cause.DESTINATION: "check experiment, workspace, and the permission to write there",
    Cause.NOT_MLFLOW: "check the address: it should be that of an MLflow server with a database (3.6 or newer)",
    Cause.SERVER: "check that the server is up",
    Cause.SIZE: "let the proxy in front of MLflow accept larger bodies",
    Cause.CONTENT: "the server is up, but refuses this content: see its message, or its own log",
}
# Where the cause alone would send people to the wrong place: what the doctor says.
_BY_CODE = frozenset(
    {
        Code.NAME_UNKNOWN,
        Code.REFUSED,
        Code.UNTRUSTED,
        Code.CERTIFICATE_EXPIRED,
        Code.OTHER_HOST,
        Code.NOT_TLS,
        Code.TLS_WANTED,
        Code.PROXY,
        Code.REDIRECTED,
        Code.PAGE,
        Code.FILE_STORE,
        Code.HOST_NOT_ALLOWED,
        Code.WORKSPACES_OFF,
    }
)


class Server(Protocol):
    """What is said about the server: `Connection`."""

    address: str
    credentials: Credentials
    unused_variables: tuple[str, ...]


def explained(outcome: Outcome, server: Server, settings: Settings) -> str:
    """An outcome in words, with its code.

    Args:
        outcome: What became of a request.
        server: Where it went.
        settings: All settings.
    """
    if outcome.code in _BY_CODE:
        from mlflow_otlp_exporter._internal.common.hints import advice_for  # noqa: PLC0415 - where something is wrong

        advice = advice_for(outcome.code).fix
    else:
        advice = "; ".join(_advice(outcome.cause or Cause.SERVER, server, settings))
    return coded(outcome.code, f"{server.address}: {outcome.message}; {advice}")


def _advice(cause: Cause, server: Server, settings: Settings) -> Iterator[str]:
    if cause is Cause.CREDENTIALS:
        yield f"credentials: {server.credentials}"
    yield _ADVICE[cause]
    if cause is not Cause.CREDENTIALS:
        return
    if server.unused_variables:
        names = ", ".join(server.unused_variables)
        yield f"{names} not used: set for another server than the one that spans are sent to"
    in_pod = settings.traces.group is Group.MLFLOW and ServiceAccount.found_in(settings.service_account_dir)
    if in_pod and str(server.credentials).startswith("none"):
        yield "MLFLOW_TRACKING_AUTH=kubernetes sends the token of the pod's service account here, too"
