"""For what can be wrong: its most likely cause, and the command or variable that mends it; for `mlflow-otlp doctor`.

docs/troubleshooting.md says the same at length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mlflow_otlp_exporter._internal.common.codes import MessageCode


class Hint(NamedTuple):
    """What to know and to do."""

    cause: str
    fix: str


_ADDRESS = "set MLFLOW_TRACKING_URI to the address that the console is opened at, without what follows `#`"
_NONE = Hint("", "see docs/troubleshooting.md")
_ADVICE: Mapping[MessageCode, Hint] = {
    MessageCode.INVALID_SETTING: Hint(
        "the value was mistyped, or is meant for another program", "set it to what is expected"
    ),
    MessageCode.NOT_A_SERVER: Hint(
        "the variable is set as for scripts that write into a database or folder without a server",
        "mlflow server --backend-store-uri sqlite:///mlflow.db, and MLFLOW_TRACKING_URI=http://localhost:5000",
    ),
    MessageCode.DATABRICKS: Hint(
        "Databricks' tracking server is reached by its own SDK",
        "set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_TRACES_HEADERS as Databricks documents them",
    ),
    MessageCode.REST_PATH: Hint("the address was copied from a REST call, or from a page", _ADDRESS),
    MessageCode.SDK_PLUGIN: Hint(
        "the MLflow SDK, which would run the plugin, is not in the app",
        "set MLFLOW_TRACKING_TOKEN_FILE or MLFLOW_TRACKING_TOKEN, and unset the variable",
    ),
    MessageCode.CONFLICTING_SETTINGS: Hint("both are given", "take one of them away"),
    MessageCode.INVALID_CREDENTIAL: Hint(
        "what was copied has line breaks or other characters", "set MLFLOW_TRACKING_TOKEN to the token alone"
    ),
    MessageCode.CREDENTIALS_FILE: Hint("the file was edited by hand", "mend or remove ~/.mlflow/credentials"),
    MessageCode.NAME_NOT_RESOLVED: Hint(
        "the name is mistyped, or known only inside another network or cluster",
        "set MLFLOW_TRACKING_URI to a name that is known here; in Kubernetes http://SERVICE.NAMESPACE.svc:PORT",
    ),
    MessageCode.CONNECTION_REFUSED: Hint(
        "no server is running there, or it listens at another port, or on 127.0.0.1 of another machine",
        "start it (`mlflow server --host 0.0.0.0 --port 5000`), or set MLFLOW_TRACKING_URI to where it is",
    ),
    MessageCode.CONNECT_TIMEOUT: Hint(
        "a firewall or NetworkPolicy drops the packets, or the host is down",
        "let connections to that port through, or set HTTPS_PROXY if a proxy is the only way out",
    ),
    MessageCode.CERTIFICATE_UNTRUSTED: Hint(
        "the certificate is self-signed, or by a CA that is not among the known ones",
        "set MLFLOW_TRACKING_SERVER_CERT_PATH (or OTEL_EXPORTER_OTLP_CERTIFICATE, or REQUESTS_CA_BUNDLE) to the CA's "
        "file; in a pod /var/run/secrets/kubernetes.io/serviceaccount/service-ca.crt",
    ),
    MessageCode.CERTIFICATE_EXPIRED: Hint(
        "the server's certificate was not renewed, or the clock of this machine is wrong",
        "renew the certificate on the server; compare `date -u` on both",
    ),
    MessageCode.CERTIFICATE_HOST_MISMATCH: Hint(
        "the server is reached under a name that its certificate does not have",
        "set MLFLOW_TRACKING_URI to a name of the certificate, or have one made with this name",
    ),
    MessageCode.NOT_TLS: Hint(
        "the port speaks plain HTTP", "set MLFLOW_TRACKING_URI to http:// instead of https://, or to the TLS port"
    ),
    MessageCode.TLS_REQUIRED: Hint("the port speaks TLS", "set MLFLOW_TRACKING_URI to https:// instead of http://"),
    MessageCode.PROXY: Hint(
        "the proxy is down, or does not let connections to this server through",
        "check HTTPS_PROXY and HTTP_PROXY, or add the host to NO_PROXY",
    ),
    MessageCode.CONNECTION_CLOSED: Hint(
        "the port is not HTTP's, speaks TLS, or the server ends connections",
        "check the port; if the server speaks TLS, set MLFLOW_TRACKING_URI to https://",
    ),
    MessageCode.RESPONSE_TIMEOUT: Hint(
        "the server is overloaded, its database is locked, or a proxy in between holds the request",
        "look into the server's log; raise MLFLOW_HTTP_REQUEST_TIMEOUT if it is only slow",
    ),
    MessageCode.INVALID_REQUEST: Hint("a header or the address is not usable", "check OTEL_EXPORTER_OTLP_HEADERS"),
    MessageCode.UNAUTHENTICATED: Hint(
        "no credential is set for this server, or it is wrong or expired",
        "set MLFLOW_TRACKING_TOKEN_FILE or MLFLOW_TRACKING_TOKEN (`oc whoami --show-token`), or "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ),
    MessageCode.CREDENTIAL_UNAVAILABLE: Hint(
        "the file does not exist in this container, or is not readable for this user",
        "mount the token, or set MLFLOW_TRACKING_TOKEN_FILE to where it is; in a pod "
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
    ),
    MessageCode.PROXY_UNAUTHENTICATED: Hint(
        "the proxy knows no user from here",
        "set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, or add the host to NO_PROXY",
    ),
    MessageCode.REDIRECTED: Hint(
        "a login proxy (OAuth) or a redirect to https stands in front of MLflow",
        "set MLFLOW_TRACKING_URI to the service inside the cluster, or to the address that is redirected to, and give "
        "a token (MLFLOW_TRACKING_TOKEN_FILE)",
    ),
    MessageCode.HTML_PAGE: Hint(
        "a login proxy, or another web site, answers at this address",
        "set MLFLOW_TRACKING_URI to the service inside the cluster, or give a token (MLFLOW_TRACKING_TOKEN_FILE)",
    ),
    MessageCode.NO_OTLP_ENDPOINT: Hint(
        "the address lacks the path that MLflow is under, or MLflow is older than 3.6, or runs with --gunicorn-opts",
        "set MLFLOW_TRACKING_URI to the address with its prefix, such as https://host/mlflow; try `curl URI/version`",
    ),
    MessageCode.FILE_STORE: Hint(
        "the server keeps its data in files, where MLflow takes no OpenTelemetry",
        "start it with a database: mlflow server --backend-store-uri sqlite:///mlflow.db",
    ),
    MessageCode.HOST_NOT_ALLOWED: Hint(
        "MLflow takes requests only for localhost and private addresses, unless it is told its names",
        "start it with `mlflow server --allowed-hosts HOST:PORT`, HOST being that of MLFLOW_TRACKING_URI",
    ),
    MessageCode.WORKSPACES_DISABLED: Hint(
        "a workspace is set, but the server was started without --enable-workspaces",
        "unset MLFLOW_WORKSPACE, or start the server with --enable-workspaces",
    ),
    MessageCode.WORKSPACE_NOT_FOUND: Hint(
        "the name is mistyped, the workspace was never created, or the namespace lacks the label mlflow-enabled=true",
        "set MLFLOW_WORKSPACE to one that exists; in Kubernetes `kubectl label namespace NAME mlflow-enabled=true`",
    ),
    MessageCode.WORKSPACE_REQUIRED: Hint(
        "the server has workspaces, and no default for those who name none", "set MLFLOW_WORKSPACE"
    ),
    MessageCode.EXPERIMENT_NOT_FOUND: Hint(
        "the experiment's name or id is mistyped, or of another workspace, or it was never created",
        "set MLFLOW_EXPERIMENT_NAME to one that exists, or MLFLOW_OTLP_CREATE_EXPERIMENT=true",
    ),
    MessageCode.EXPERIMENT_DELETED: Hint(
        "somebody has deleted the experiment: its traces are not shown",
        "mlflow experiments restore --experiment-id ID, or set MLFLOW_EXPERIMENT_NAME to another",
    ),
    MessageCode.EXPERIMENT_REQUIRED: Hint(
        "nothing says which experiment spans go to", "set MLFLOW_EXPERIMENT_ID, or MLFLOW_EXPERIMENT_NAME"
    ),
    MessageCode.PERMISSION_DENIED: Hint(
        "the user may not write there: in Kubernetes verb `update` on experiments.mlflow.kubeflow.org is needed; in "
        "basic-auth EDIT on the experiment",
        "have it granted (`kubectl create rolebinding NAME --clusterrole=edit --serviceaccount=NAMESPACE:ACCOUNT`), "
        "and wait 300 s, for which MLflow keeps a refusal",
    ),
    MessageCode.LOOKUP_DENIED: Hint(
        "the token may write spans, but not read experiments",
        "set MLFLOW_EXPERIMENT_ID instead of MLFLOW_EXPERIMENT_NAME",
    ),
    MessageCode.NO_MLFLOW_SERVER: Hint(
        "spans go to a Collector, and nothing says where MLflow is",
        "set MLFLOW_TRACKING_URI besides OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (not OTEL_EXPORTER_OTLP_ENDPOINT, which it "
        "beats), or MLFLOW_EXPERIMENT_ID",
    ),
    MessageCode.DESTINATION_REJECTED: Hint(
        "workspace, experiment or permission is not what the server expects",
        "check MLFLOW_WORKSPACE and MLFLOW_EXPERIMENT_ID",
    ),
    MessageCode.SERVER_UNAVAILABLE: Hint(
        "the server is starting or overloaded, or a proxy does not reach it", "look into the server's log"
    ),
    MessageCode.DATABASE_UNAVAILABLE: Hint(
        "the database behind MLflow is down, locked or full", "start it, or make room; MLflow needs no restart then"
    ),
    MessageCode.DATABASE_DAMAGED: Hint("SQLite's file is damaged", "restore the server's database from its last copy"),
    MessageCode.RATE_LIMITED: Hint("a proxy limits requests", "raise its limit, or wait"),
    MessageCode.SERVER_ERROR: Hint("the server met what it does not expect", "look into the server's log"),
    MessageCode.AUTHORIZATION_CHECK_FAILED: Hint(
        "MLflow does not reach the Kubernetes API", "look into the server's log, and check the API server"
    ),
    MessageCode.SPAN_REJECTED: Hint("the server does not accept what was sent", "look into the server's log"),
    MessageCode.REQUEST_TOO_LARGE: Hint("a proxy limits the size of bodies", "nginx: client_max_body_size 64m"),
    MessageCode.PARTIAL_SUCCESS: Hint("the server took a part of the spans only", "look into the server's log"),
    MessageCode.SPOOL_UNAVAILABLE: Hint(
        "the disk is full, read-only, or the folder belongs to another user",
        "make room there, or set MLFLOW_OTLP_SPOOL_DIR to a folder that can be written",
    ),
    MessageCode.INSTRUMENTATION_MISSING: Hint(
        "instrumentations are packages of their own", "pip install what is named"
    ),
    MessageCode.CLOCK_SKEW: Hint(
        "the clock of this machine or of the server is wrong",
        "switch on time synchronisation (`timedatectl set-ntp true`), on both",
    ),
    MessageCode.NOT_DELIVERED: Hint(
        "what takes the spans does not pass them on to this MLflow",
        "check the Collector's exporter, its log, and the headers x-mlflow-experiment-id and x-mlflow-workspace there "
        "(`mlflow-otlp collector-config`)",
    ),
}


def hint_for(code: MessageCode) -> Hint:
    """The likeliest cause of what a code stands for, and what mends it."""
    return _ADVICE.get(code, _NONE)
