"""Cause and fix of each message code: for log lines and `mlflow-otlp doctor`, and for docs/troubleshooting.md.

`make troubleshooting` writes the page from this table and from tests/support/troubleshooting_page.py.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code


class Hint(NamedTuple):
    """Likely cause of a message, and its fix, in Markdown."""

    cause: str
    fix: str = ""


# The spool is bound to the address and the kind of credential.
_ON_DISK = "Spans on disk keep the old address: `mlflow-otlp spool flush --from HOST:PORT` sends them to the new one."
_START_SERVER = "Start the server (`mlflow server --port PORT`)"

HINTS: Mapping[MessageCode, Hint] = {
    MessageCode.INVALID_SETTING: Hint(
        "The value or the variable name has a typo, or the variable belongs to another program.",
        "Correct the variable as the message says. `mlflow-otlp settings --all` lists all settings.",
    ),
    MessageCode.NOT_A_SERVER: Hint(
        "The tracking URI names a database or a folder, as in scripts that use the MLflow SDK without a server.",
        "Start a server (`mlflow server --backend-store-uri sqlite:///mlflow.db`) and set "
        "`MLFLOW_TRACKING_URI=http://localhost:5000`.",
    ),
    MessageCode.DATABRICKS: Hint(
        "Only Databricks' own SDK can use its tracking server.",
        "Unset `MLFLOW_TRACKING_URI`, and set `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` and "
        "`OTEL_EXPORTER_OTLP_TRACES_HEADERS` as Databricks documents them.",
    ),
    MessageCode.REST_PATH: Hint(
        "The address was copied from a REST call (`/api/2.0/...`), or a console page was set as OTLP endpoint.",
        "Set `MLFLOW_TRACKING_URI` to the address of the MLflow console without the part after `#`, such as "
        "`http://host:5000`.",
    ),
    MessageCode.SDK_PLUGIN: Hint(
        "The plugin runs inside the MLflow SDK, which the application does not use.",
        "Set `MLFLOW_TRACKING_TOKEN_FILE` or `MLFLOW_TRACKING_TOKEN`, and unset the variable.",
    ),
    MessageCode.CONFLICTING_SETTINGS: Hint("Two arguments or two variables exclude each other.", "Remove one of them."),
    MessageCode.INVALID_CREDENTIAL: Hint(
        "The token contains line breaks or other characters, or `credentials=` is no token, path, pair or function. Of "
        "`mlflow-otlp gateway`: the file with the tokens of clients, or a file of the certificate, cannot be used.",
        "Set `MLFLOW_TRACKING_TOKEN` to the token alone. For the gateway, correct the file that the message names.",
    ),
    MessageCode.CREDENTIALS_FILE: Hint(
        "The file `~/.mlflow/credentials` is malformed, usually after a manual edit.",
        "Correct or remove `~/.mlflow/credentials`.",
    ),
    MessageCode.CREDENTIAL_PROVIDER: Hint(
        "No installed package has an entry point of this name, or the entry point returns no `requests.Session`.",
        "Install the package, or unset `OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER`.",
    ),
    MessageCode.TRACER_PROVIDER: Hint(
        "Another library has set a tracer provider that is not the OpenTelemetry SDK's.",
        "Call `configure()` before that library, or pass `tracer_provider=`.",
    ),
    MessageCode.SCHEME_MISSING: Hint(
        "The address is only a host and a port, such as `mlflow:5000`.",
        "Set `MLFLOW_TRACKING_URI=http://HOST:PORT`, or `https://HOST` if the server uses TLS.",
    ),
    MessageCode.NAME_NOT_RESOLVED: Hint(
        "The name has a typo, or exists only inside another network or cluster.",
        "Set `MLFLOW_TRACKING_URI` to a name that resolves where the application runs; in Kubernetes "
        "`http://SERVICE.NAMESPACE.svc:PORT`.",
    ),
    MessageCode.CONNECTION_REFUSED: Hint(
        "No server listens at this port, or it listens only on 127.0.0.1 of another machine. In a container, localhost "
        "is the container itself.",
        f"{_START_SERVER}, or set `MLFLOW_TRACKING_URI` to its address. {_ON_DISK}",
    ),
    MessageCode.CONNECT_TIMEOUT: Hint(
        "A firewall or NetworkPolicy drops the packets, or the host is down.",
        "Allow connections to this port, or set `HTTPS_PROXY` if only a proxy reaches the server.",
    ),
    MessageCode.CERTIFICATE_UNTRUSTED: Hint(
        "The certificate is self-signed, or signed by a private CA, such as that of a proxy that inspects TLS. "
        "`SSL_CERT_FILE` has no effect on `requests`.",
        "Set `MLFLOW_TRACKING_SERVER_CERT_PATH` (for an OTLP endpoint `OTEL_EXPORTER_OTLP_CERTIFICATE`) to the CA "
        "file; in an OpenShift pod `/var/run/secrets/kubernetes.io/serviceaccount/service-ca.crt`.",
    ),
    MessageCode.CERTIFICATE_EXPIRED: Hint(
        "The certificate was not renewed, or the clock of this machine is wrong.",
        "Renew the certificate on the server; compare `date -u` on both machines.",
    ),
    MessageCode.CERTIFICATE_HOST_MISMATCH: Hint(
        "The certificate does not contain the host name, or the IP address, of the URL.",
        "Set `MLFLOW_TRACKING_URI` to a name of the certificate, or issue a certificate for this name.",
    ),
    MessageCode.NOT_TLS: Hint(
        "The port speaks plain HTTP.",
        "Set `MLFLOW_TRACKING_URI=http://HOST:PORT` instead of `https://`, or use the server's TLS port. " + _ON_DISK,
    ),
    MessageCode.PROXY: Hint(
        "The proxy of `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` is down, blocks this server or cannot reach it, such "
        "as a server inside of a cluster; or its scheme is wrong: most proxies speak `http://` only.",
        "Add the server's host to `NO_PROXY`, or correct `HTTPS_PROXY` or `HTTP_PROXY`.",
    ),
    MessageCode.CONNECTION_CLOSED: Hint(
        "The server stopped, the port does not speak HTTP, or it expects TLS, but the address begins with `http://`; "
        "or it expects a client certificate.",
        "Start the server if it was stopped. Check the port: if it speaks TLS, set `MLFLOW_TRACKING_URI` to "
        "`https://`; if it is a Collector's for gRPC, use the one for HTTP, such as `http://collector:4318`.",
    ),
    MessageCode.RESPONSE_TIMEOUT: Hint(
        "The server is overloaded, its database is locked, or a proxy holds the request.",
        "Read the server's log. If the server is only slow, raise `MLFLOW_HTTP_REQUEST_TIMEOUT` (10 s).",
    ),
    MessageCode.INVALID_REQUEST: Hint(
        "A header or the address contains characters that cannot be sent.",
        "Check `OTEL_EXPORTER_OTLP_HEADERS`, or the argument `headers=`.",
    ),
    MessageCode.TLS_REQUIRED: Hint(
        "The port speaks TLS.", "Set `MLFLOW_TRACKING_URI=https://HOST:PORT` instead of `http://`. " + _ON_DISK
    ),
    MessageCode.NOT_HTTP: Hint(
        "Another service listens at this port, such as SSH, Redis or a database.",
        "Correct the port of `MLFLOW_TRACKING_URI`: 5000 is MLflow's default, and 4318 that of a Collector.",
    ),
    MessageCode.HTTP2_ONLY: Hint(
        "The port, such as 4317 of a Collector, takes OTLP over gRPC, or the server or proxy speaks only HTTP/2. Spans "
        "are sent over HTTP/1.1, whatever `OTEL_EXPORTER_OTLP_PROTOCOL` says.",
        "Use the port for OTLP over HTTP, such as "
        "`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://collector:4318/v1/traces`, or enable HTTP/1.1 on the server.",
    ),
    MessageCode.CERTIFICATE_FILE: Hint(
        "The file of `MLFLOW_TRACKING_SERVER_CERT_PATH`, `OTEL_EXPORTER_OTLP_CERTIFICATE`, `REQUESTS_CA_BUNDLE` or "
        "`CURL_CA_BUNDLE`, of the client's certificate or of its key is missing, not readable or not in PEM.",
        "Correct the variable, or unset it. The file must contain `-----BEGIN CERTIFICATE-----`, or that of a key.",
    ),
    MessageCode.TLS_REJECTED: Hint(
        "The server requires a client certificate (mTLS), has no TLS version in common with this process, or does not "
        "know the host name (SNI).",
        "Set `MLFLOW_TRACKING_CLIENT_CERT_PATH` (for an OTLP endpoint `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE` and "
        "`OTEL_EXPORTER_OTLP_CLIENT_KEY`), or correct the host name. The server's log has the reason.",
    ),
    MessageCode.SOCKS_UNAVAILABLE: Hint(
        "`HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` names a SOCKS proxy, and the package PySocks is not installed.",
        "Run `pip install PySocks`, or add the server's host to `NO_PROXY`.",
    ),
    MessageCode.UNAUTHENTICATED: Hint(
        "No credential is set for this server.",
        "Set `MLFLOW_TRACKING_TOKEN_FILE` or `MLFLOW_TRACKING_TOKEN` (`oc whoami --show-token`), or "
        "`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`.",
    ),
    MessageCode.CREDENTIAL_UNAVAILABLE: Hint(
        "The token file does not exist yet, is not readable for this user, or does not contain one token of printable "
        "ASCII and nothing else; or the `credentials=` function failed.",
        "Mount the token, write the token alone into the file, or set `MLFLOW_TRACKING_TOKEN_FILE` to its path; in a "
        "pod `/var/run/secrets/kubernetes.io/serviceaccount/token`.",
    ),
    MessageCode.PROXY_UNAUTHENTICATED: Hint(
        "The proxy requires a user and a password.",
        "Set `HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT`, or add the server's host to `NO_PROXY`.",
    ),
    MessageCode.GATEWAY_UNAUTHENTICATED: Hint(
        "The gateway takes only requests with one of its tokens, or with the credential that it forwards to MLflow. "
        "`MLFLOW_TRACKING_TOKEN` is not sent to a gateway.",
        "Set `OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN`, or add the token to the gateway's "
        "`MLFLOW_OTLP_GATEWAY_TOKENS_FILE`. A Collector between must forward the header.",
    ),
    MessageCode.REDIRECTED: Hint(
        "A login proxy (OAuth) stands in front of MLflow, or the server redirects `http://` to `https://`.",
        "Set `MLFLOW_TRACKING_URI` to the redirect's target if that is MLflow, otherwise to the service inside the "
        "cluster, and set a token (`MLFLOW_TRACKING_TOKEN_FILE`).",
    ),
    MessageCode.HTML_PAGE: Hint(
        "A login proxy or another web site answers at this address.",
        "Set a token (`MLFLOW_TRACKING_TOKEN_FILE`), or set `MLFLOW_TRACKING_URI` to the service inside the cluster. "
        "If HOST:PORT is another web site, correct host and port. If the message names a proxy, add HOST to "
        "`NO_PROXY`.",
    ),
    MessageCode.NO_OTLP_ENDPOINT: Hint(
        "The address lacks MLflow's path prefix or has a wrong one; a proxy in front of MLflow rejects `/v1/traces`; "
        "or MLflow is older than 3.6 or runs with `--gunicorn-opts`, which disables OTLP.",
        "Correct the path of the address: MLflow's prefix, as in `MLFLOW_TRACKING_URI=https://host/mlflow`, or none. "
        "`curl $MLFLOW_TRACKING_URI/version` must print 3.6 or newer. Let the proxy forward `/v1/traces`. Start MLflow "
        "without `--gunicorn-opts`.",
    ),
    MessageCode.FILE_STORE: Hint(
        "The server stores its data in files (`./mlruns`), where MLflow does not support OpenTelemetry.",
        "Start the server with a database: `mlflow server --backend-store-uri sqlite:///mlflow.db`.",
    ),
    MessageCode.HOST_NOT_ALLOWED: Hint(
        "MLflow accepts only localhost and private addresses as host, unless other host names are allowed.",
        "Start MLflow with `mlflow server --allowed-hosts HOST:PORT`, the host and port of `MLFLOW_TRACKING_URI`.",
    ),
    MessageCode.WORKSPACES_DISABLED: Hint(
        "A workspace is set, but the server was started without `--enable-workspaces`.",
        "Unset `MLFLOW_WORKSPACE`, or start the server with `--enable-workspaces` (MLflow 3.10 or newer).",
    ),
    MessageCode.WORKSPACE_NOT_FOUND: Hint(
        "The name has a typo, the workspace does not exist, or the namespace lacks the label `mlflow-enabled=true`.",
        "Set `MLFLOW_WORKSPACE` to an existing workspace; in Kubernetes `kubectl label namespace NAME "
        "mlflow-enabled=true`.",
    ),
    MessageCode.WORKSPACE_REQUIRED: Hint(
        "The server has workspaces, but no default workspace.",
        "Set `MLFLOW_WORKSPACE`; on OpenShift AI to the namespace.",
    ),
    MessageCode.EXPERIMENT_NOT_FOUND: Hint(
        "The name or id has a typo or belongs to another workspace, or the experiment was never created.",
        "Correct or unset `MLFLOW_EXPERIMENT_ID`, which beats the name, if it is set; set `MLFLOW_EXPERIMENT_NAME` to "
        "an existing experiment, or set `MLFLOW_OTLP_CREATE_EXPERIMENT=true`.",
    ),
    MessageCode.EXPERIMENT_DELETED: Hint(
        "The experiment was deleted. MLflow would still accept spans for its id, but does not show them.",
        "Run `mlflow experiments restore --experiment-id ID`, or set `MLFLOW_EXPERIMENT_NAME` to another experiment.",
    ),
    MessageCode.EXPERIMENT_REQUIRED: Hint(
        "No setting names an experiment, and no MLflow server could be asked for its id.",
        "Set `MLFLOW_EXPERIMENT_ID`, or `MLFLOW_EXPERIMENT_NAME` together with `MLFLOW_TRACKING_URI`.",
    ),
    MessageCode.PERMISSION_DENIED: Hint(
        "The user may not write there. Kubernetes: the verb `update` on `experiments.mlflow.kubeflow.org` is needed; "
        "basic-auth: `EDIT` on the experiment.",
        "Grant the permission: with basic-auth `EDIT` on the experiment; in Kubernetes `kubectl create rolebinding "
        "NAME --clusterrole=edit --serviceaccount=NAMESPACE:ACCOUNT`, and wait 300 s, because MLflow caches a refusal "
        "for that long.",
    ),
    MessageCode.GATEWAY_DENIED: Hint(
        "The entry of the client's token in the gateway's tokens file does not have the workspace and experiment.",
        "Set `MLFLOW_WORKSPACE` and `MLFLOW_EXPERIMENT_NAME` (other SDKs: the headers `x-mlflow-workspace` and "
        "`x-mlflow-experiment`) to a destination of the token, or add the destination to its entry in "
        "`MLFLOW_OTLP_GATEWAY_TOKENS_FILE`.",
    ),
    MessageCode.LOOKUP_DENIED: Hint(
        "The token may write spans, but not read experiments (verb `get`).",
        "Set `MLFLOW_EXPERIMENT_ID` (or `experiment_id=`) instead of a name, or grant `get`.",
    ),
    MessageCode.NO_MLFLOW_SERVER: Hint(
        "Spans go to a gateway or Collector, and no setting names the MLflow server.",
        "Change nothing behind a gateway: it reads the name of the experiment from the spans. Otherwise set "
        "`MLFLOW_TRACKING_URI`, and keep the Collector's address in `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, because "
        "`MLFLOW_TRACKING_URI` overrides `OTEL_EXPORTER_OTLP_ENDPOINT`; or set `MLFLOW_EXPERIMENT_ID`.",
    ),
    MessageCode.NO_EXPERIMENT_SET: Hint(
        "Neither an experiment name nor an experiment id is set.",
        "To send traces to another experiment, set `MLFLOW_EXPERIMENT_NAME`.",
    ),
    MessageCode.DESTINATION_REJECTED: Hint(
        "The server does not accept the workspace or the experiment; its message says which.",
        "Check `MLFLOW_WORKSPACE` and `MLFLOW_EXPERIMENT_ID`, and the permission to write there.",
    ),
    MessageCode.TRACE_IN_OTHER_EXPERIMENT: Hint(
        "Another service of a distributed trace sent its spans first, to its own experiment. A trace belongs to one "
        "experiment (MLflow 3.18 and newer): the spans of this service are sent there, or dropped if the token may not "
        "read or write there.",
        "Set the same `MLFLOW_EXPERIMENT_NAME` in all services of a trace; or pass the experiment on, with "
        '`trace_context(experiment=..., baggage=("experiment",))` in the caller and `MLFLOW_OTLP_BAGGAGE=experiment` '
        "in the others; or grant the token access to the other experiment.",
    ),
    MessageCode.TRACE_IN_OTHER_WORKSPACE: Hint(
        "The caller's or the callee's service sends the same trace to another workspace. A trace belongs to one "
        "workspace, and MLflow accepts spans of other workspaces without storing them.",
        "Set the same `MLFLOW_WORKSPACE` in all services of a trace; or pass the workspace on, with "
        '`trace_context(workspace=..., baggage=("workspace",))` in the caller and `MLFLOW_OTLP_BAGGAGE=workspace` in '
        "the others; or remove the header `traceparent` between the services of different teams.",
    ),
    MessageCode.NOT_MLFLOW: Hint(
        "Another service listens at host and port of the tracking URI, such as a registry, a Collector or AirPlay "
        "(macOS, port 5000); or the address lacks the path prefix of MLflow.",
        "Correct host and port of `MLFLOW_TRACKING_URI` (HOST:PORT), or add MLflow's path prefix: `curl "
        "$MLFLOW_TRACKING_URI/version` must print a version. A Collector's address belongs into "
        "`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, with `/v1/traces`. If the message names a proxy, add HOST to "
        "`NO_PROXY`.",
    ),
    MessageCode.OTLP_UNSUPPORTED: Hint(
        "MLflow takes OpenTelemetry since version 3.6.", "Use MLflow 3.6 or newer: `pip install --upgrade mlflow`."
    ),
    MessageCode.SERVER_UNAVAILABLE: Hint(
        "The server is starting or overloaded, or a proxy cannot reach it.",
        "Check that the server is running, and read its log.",
    ),
    MessageCode.DATABASE_UNAVAILABLE: Hint(
        "The database of MLflow is down, locked or full.",
        "Start the database, or free disk space there; MLflow needs no restart.",
    ),
    MessageCode.DATABASE_DAMAGED: Hint(
        "The SQLite file of the server is damaged.", "Restore the server's database from its last backup."
    ),
    MessageCode.RATE_LIMITED: Hint(
        "A proxy or a Collector limits the request rate.", "Raise the limit of the proxy or Collector, or wait."
    ),
    MessageCode.SERVER_ERROR: Hint(
        "The server failed unexpectedly, sometimes on one span. That span is isolated, and only it is dropped.",
        "Read the server's log.",
    ),
    MessageCode.SPAN_REJECTED: Hint(
        "The server rejects this span on every attempt. The other spans of its request were sent.",
        "Read the server's message and its log.",
    ),
    MessageCode.REQUEST_TOO_LARGE: Hint(
        "A proxy limits the size of request bodies.",
        "Raise the limit of the proxy in front of MLflow; nginx: `client_max_body_size 64m`.",
    ),
    MessageCode.PARTIAL_SUCCESS: Hint(
        "A Collector or another OTLP server accepted only a part of the spans (partial success).",
        "Read the server's message and its log.",
    ),
    MessageCode.SERVER_MESSAGE: Hint(
        "The server accepted the spans, and sent a message with its response.", "Do what the message asks for."
    ),
    MessageCode.COMPRESSION_UNSUPPORTED: Hint(
        "MLflow before 3.7 does not accept compressed requests.",
        "Unset `OTEL_EXPORTER_OTLP_COMPRESSION` for this server. No data is lost.",
    ),
    MessageCode.POSSIBLE_DUPLICATE: Hint(
        "A request timed out, and which of its spans are stored is unknown: the token may not read, or no setting "
        "names the MLflow server.",
        "Use MLflow 3.17 or newer; or set `MLFLOW_TRACKING_URI` in addition to the endpoint, and grant permission to "
        "read (`get`).",
    ),
    MessageCode.NOT_DELIVERED: Hint(
        "The process ended before a slow server had answered, or before the spans were sent; or a "
        "Collector accepted them and did not forward them to MLflow.",
        "Spans on disk are sent by the next run, or by `mlflow-otlp spool flush`; without a spool, enable it "
        "(`MLFLOW_OTLP_SPOOL=true`), or call `shutdown(timeout)` with more time. Behind a Collector, "
        "check its exporter, its log, and its headers `x-mlflow-experiment-id` and `x-mlflow-workspace` (`mlflow-otlp "
        "collector-config`).",
    ),
    MessageCode.AUTHORIZATION_CHECK_FAILED: Hint(
        "MLflow cannot reach the Kubernetes API.", "Read MLflow's log, and check the API server."
    ),
    MessageCode.TRACE_METADATA: Hint(
        "MLflow before 3.14 takes trace metadata in a separate call after the spans. The token may neither read nor "
        "change traces, MLflow does not have the traces, or the process ended too early.",
        "Grant the token permission to read and update the experiment.",
    ),
    MessageCode.FEEDBACK_DROPPED: Hint(
        "One of these; the message says which one: for five minutes the server had no such trace or denied the call; "
        "no trace id was passed and no span was active; spans go to a Collector and `MLFLOW_TRACKING_URI` is not set; "
        "`log_feedback()` or `log_expectation()` was called before `configure()` or after `shutdown()`; a stored file "
        "was damaged or too old; the process ended without a spool.",
        "Check the trace id and its workspace, set `MLFLOW_TRACKING_URI`, call `configure()` first, and grant the "
        "token permission to update the experiment.",
    ),
    MessageCode.ATTACHMENT_UPLOAD: Hint(
        "One of these; the message says which one: MLflow is older than 3.11, or stores the experiment's artifacts "
        "elsewhere (a folder, or S3 without the server in between); the server takes files only by signed URLs; the "
        "token may not write artifacts; a proxy rejects a body of that size (413) or returns a login page; or MLflow's "
        "artifact store is unavailable.",
        "Start the server with `--serve-artifacts` and `--artifacts-destination` and without "
        "`--artifacts-presigned-only`, and use an experiment that was created after this change; grant the token "
        "permission to update the experiment; raise the proxy's limit (`client_max_body_size`); or set "
        "`MLFLOW_OTLP_ATTACHMENTS=false`.",
    ),
    MessageCode.JOURNAL_UNAVAILABLE: Hint(
        "`durability` is `every-span`, and the disk is full, or spans end much faster than they are delivered.",
        "Free disk space, or set `MLFLOW_OTLP_SPOOL_DIR`.",
    ),
    MessageCode.SPOOL_UNAVAILABLE: Hint(
        "The disk is full (`No space left on device`), the file system or the home directory is read-only, the folder "
        "belongs to another user (`Permission denied`), or its file system does not support locks.",
        "Free disk space, or set `MLFLOW_OTLP_SPOOL_DIR` to a writable folder on a local disk.",
    ),
    MessageCode.SPOOL_FULL: Hint(
        "The server was away until the spool reached `MLFLOW_OTLP_SPOOL_MAX_BYTES` (512 MiB), or the disk is nearly "
        "full.",
        "Restore the server, or raise `MLFLOW_OTLP_SPOOL_MAX_BYTES`.",
    ),
    MessageCode.GATEWAY_UNAVAILABLE: Hint(
        "The spool or the buffer of the gateway is full, because MLflow takes no spans or fewer than arrive; or the "
        "gateway is shutting down. Clients keep their spans, and try again.",
        "Find out why MLflow takes no spans: the log has the reason (`Export failing`). For a longer outage, raise "
        "`MLFLOW_OTLP_SPOOL_MAX_BYTES`, and the size of the volume with it.",
    ),
    MessageCode.SPOOL_EXPIRED: Hint(
        "The server did not accept these spans for that long.",
        "Find the reason with `mlflow-otlp doctor`, or raise `MLFLOW_OTLP_SPOOL_MAX_AGE` (7 days).",
    ),
    MessageCode.SPOOL_FILE_UNREADABLE: Hint(
        "The disk failed, a newer version of this library wrote the file, file permissions changed, or something else "
        "than a regular file of this user has the name of a spool file.",
        "Check the disk and the owner of the folder; `mlflow-otlp spool list --dead-letters` shows the requests in "
        "`refused/`, `mlflow-otlp spool status` counts the damaged files.",
    ),
    MessageCode.SPOOL_SHARED: Hint(
        "Two exporters for one server have different static tokens, or functions with the same name. Tokens are never "
        "written to disk, so the exporters share a folder, and each sends the other's spans with its own permissions.",
        "Give each exporter its own `spool_dir`, a token file (a `pathlib.Path` as `credentials=`), or a function "
        "with its own name.",
    ),
    MessageCode.SPANS_DROPPED: Hint(
        "Spans end faster than the server accepts them or this process can prepare them, for longer than memory lasts; "
        "or they ended after the shutdown; or they could not be encoded or masked.",
        "Enable the spool (`MLFLOW_OTLP_SPOOL=true`), raise `MLFLOW_OTLP_BUFFER_SPANS` and "
        "`MLFLOW_OTLP_BUFFER_BYTES`, or sample with `MLFLOW_TRACE_SAMPLING_RATIO`; call `shutdown()` last.",
    ),
    MessageCode.EXPORT_DISABLED: Hint(
        "A setting leaves no span, such as `OTEL_SDK_DISABLED=true`, `MLFLOW_OTLP_ENABLED=false`, "
        "`OTEL_TRACES_SAMPLER=always_off` or a small ratio; or spans ended after `shutdown()`.",
        "Unset the variable that the message names; call `shutdown()` last.",
    ),
    MessageCode.ATTRIBUTES_DROPPED: Hint(
        "OpenTelemetry keeps 128 attributes per span by default; a conversation has more.",
        "Set `OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10000`.",
    ),
    MessageCode.VALUES_DROPPED: Hint(
        "An attribute was set to an object.", "Set the attribute to a string, a number, a boolean, or a list of these."
    ),
    MessageCode.INSTRUMENTATION_MISSING: Hint(
        "Each instrumentation is a package of its own.",
        "Install the package that `mlflow-otlp doctor` names, such as `openinference-instrumentation-openai`.",
    ),
    MessageCode.INSTRUMENTATION_FAILED: Hint(
        "The installed versions of the instrumentation and its library do not work together.",
        "Update the instrumentation and its library, or exclude it with `MLFLOW_OTLP_AUTO_INSTRUMENT=-NAME`.",
    ),
    MessageCode.SERVICE_NAME_IGNORED: Hint(
        "The application had a tracer provider before `configure()`, and the resource of a provider cannot change.",
        "Set `OTEL_SERVICE_NAME`, or pass the name where the provider is created.",
    ),
    MessageCode.CONTENT_NOT_RECORDED: Hint(
        "Other code raised: a method of a value or of a result, a span processor or a sampler.",
        "Correct the code that raises. The application itself is not affected.",
    ),
    MessageCode.INVALID_TRACE_CONTEXT: Hint(
        "An argument has the wrong type, or a tag has a name that MLflow reserves; or a caller sent more in its "
        "baggage than is accepted.",
        "Pass what the message expects. Accept from baggage (`MLFLOW_OTLP_BAGGAGE`) only what trusted callers send.",
    ),
    MessageCode.TRACE_FILTERED: Hint(
        "A trace with only HTTP, database and messaging spans does not come from an agent.",
        "Set `MLFLOW_OTLP_NOISE=none` to send such traces.",
    ),
    MessageCode.NOT_SAMPLED_BY_CALLER: Hint(
        "The caller sent a `traceparent` with the flag 00 (not sampled), as load balancers, gateways and meshes do. "
        "OpenTelemetry's default sampler follows the caller, so no span is recorded.",
        "Set `MLFLOW_OTLP_IGNORE_CALLER_SAMPLING=true`, or let the caller sample.",
    ),
    MessageCode.CLOCK_SKEW: Hint(
        "The clock of this machine or of the server is wrong: traces appear at the wrong time, and tokens seem "
        "expired.",
        "Enable time synchronisation on both machines (`timedatectl set-ntp true`).",
    ),
    MessageCode.DESTINATION_TOO_LATE: Hint(
        "A trace is never split, and its first span had already started, usually the span of a web framework.",
        "Set workspace and experiment before the first span starts: in a middleware around the application (ASGI, "
        "WSGI).",
    ),
    MessageCode.MASK_FAILED: Hint(
        "The function passed as `mask=` raised an exception, or returned an invalid value.",
        "Correct the function. No unmasked value was sent.",
    ),
    MessageCode.UNKNOWN_KIND: Hint(
        "`kind=` differs by one or two letters from a kind that MLflow knows.",
        "Correct the kind, or ignore the message if the kind is your own.",
    ),
    MessageCode.THREADS_DISABLED: Hint(
        "uWSGI was started without `--enable-threads`.",
        "Add `--enable-threads` to the command, or `enable-threads = true` to the configuration file.",
    ),
    MessageCode.TRACE_NOT_STORED: Hint(
        "`trace_url()` was called before the trace arrived: its spans are not sent yet, wait on disk, or were dropped.",
        "Call `flush()` first and read its result, or pass `check=False` for the address that the trace will have.",
    ),
    MessageCode.READER_FAILED: Hint(
        "A package has registered a reader of spans (`mlflow_otlp_exporter.readers`), which is broken or slow. Its "
        "results are left out; the spans are sent.",
        "Update the package, or tell its authors.",
    ),
    MessageCode.EXPORT_CONFIGURED: Hint(
        "`configure()` was called, the gateway has read tokens or certificates again, the pod's namespace is the "
        "workspace, or a server with a static prefix has its endpoint at the root."
    ),
    MessageCode.INSTRUMENTED: Hint("`configure()` has enabled these instrumentations."),
    MessageCode.EXPERIMENT_CREATED: Hint(
        "The experiment did not exist; `configure()` or `MLFLOW_OTLP_CREATE_EXPERIMENT=true` creates it.",
        "Nothing for a new experiment. If the name is mistyped, correct it and delete the new experiment; "
        "`configure(create_experiment=False)` or `MLFLOW_OTLP_CREATE_EXPERIMENT=false` never creates one.",
    ),
    MessageCode.RECOVERED: Hint("A problem that was logged before is over."),
    MessageCode.PIPELINE_REPLACED: Hint(
        "`configure()` replaces the pipeline of `OTEL_TRACES_EXPORTER=mlflow`, because both would send the same spans."
    ),
    MessageCode.INTERNAL_ERROR: Hint(
        "A bug in this library. The application continues.",
        "Report the bug, with the traceback and the version (`mlflow-otlp --version`).",
    ),
}


# Instead of the hint for UNAUTHENTICATED, if a credential was sent.
CREDENTIAL_REJECTED = Hint(
    "The credential is wrong, expired, or for another server.",
    "Replace the credential that the message names: by a new token (`oc whoami --show-token`), or the right user and "
    "password. A token that expires belongs into a file (`MLFLOW_TRACKING_TOKEN_FILE`), which is read again; "
    "after this change, `mlflow-otlp spool flush --from FOLDER` sends spans on disk (`spool status` shows FOLDER).",
)
# Instead of the fix, for spans of other runs, which settings of this run do not change.
LEFTOVERS_FIX = (
    "These spans keep the workspace and the experiment of their run, whatever the settings are now. Create or "
    "restore them on the server, or delete the spans: `mlflow-otlp spool purge --workspace NAME --yes`, or "
    "`--experiment NAME`."
)
_GONE_CODES = frozenset(
    {MessageCode.WORKSPACE_NOT_FOUND, MessageCode.WORKSPACES_DISABLED}
    | {MessageCode.EXPERIMENT_NOT_FOUND, MessageCode.EXPERIMENT_DELETED}
)
# Codes whose fix names host and port of the server: HOST and PORT stand for them.
FIXES_WITH_ADDRESS = frozenset(
    {MessageCode.CONNECTION_REFUSED, MessageCode.NOT_TLS, MessageCode.TLS_REQUIRED, MessageCode.HOST_NOT_ALLOWED}
    | {MessageCode.HTML_PAGE, MessageCode.NOT_MLFLOW}
)
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def hint_for(code: MessageCode, url: str, variable: str, *, has_credential: bool) -> Hint:
    """The hint for a server: with its host and port, its variable, and by whether a credential was sent."""
    hint = CREDENTIAL_REJECTED if code is MessageCode.UNAUTHENTICATED and has_credential else HINTS[code]
    if code not in FIXES_WITH_ADDRESS:
        return hint
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    port = str(parts.port or (443 if parts.scheme == "https" else 80))
    # The port of an OTLP endpoint may be a Collector's.
    fix = hint.fix.replace(_START_SERVER, "Start the Collector or server") if variable.startswith("OTEL_") else hint.fix
    fix = re.sub(r"\bPORT\b", port, re.sub(r"\bHOST\b", lambda _: host, fix))
    fix = fix.replace("MLFLOW_TRACKING_URI", variable)
    if parts.hostname not in _LOCAL_HOSTS:  # a server on a laptop must not be opened to its network
        fix = fix.replace("mlflow server --port", "mlflow server --host 0.0.0.0 --port")
    return Hint(hint.cause, fix)


def add_fix(code: MessageCode, message: str, hint: Hint | None = None) -> str:
    end = "" if message.endswith((".", "?", "!")) else "."
    return add_code(code, f"{message}{end} {(hint or HINTS[code]).fix}")


def adapt_fix(code: MessageCode, message: str, *, is_own: bool) -> str:
    """Replace the fix in a message about spans of another run, if their workspace or experiment does not exist."""
    return message if is_own or code not in _GONE_CODES else message.replace(HINTS[code].fix, LEFTOVERS_FIX)
