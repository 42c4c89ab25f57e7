"""A configuration for an OpenTelemetry Collector in front of MLflow, as text.

YAML is written, never read, so no library is needed for it: each value is a JSON text, which YAML takes as it is. The
keys are those of otelcol-contrib.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, RUN_HEADER, WORKSPACE_HEADER

_STORAGE = "/var/lib/otelcol/mlflow"
# MLflow refuses it: an experiment header that is empty it answers with 200, and stores nothing (3.13 and newer).
_NO_EXPERIMENT = "none-was-given"
_NAME = "mlflow-collector"


@dataclass(frozen=True)
class CollectorConfig:
    """What a Collector is to do.

    Attributes:
        traces_url: MLflow's OTLP endpoint.
        experiment_id: The experiment's id; per tenant, that of requests that name none.
        workspace: The workspace, likewise.
        per_tenant: Whether each request says itself where it goes.
        token_file: A file with a bearer token, read again when it changes.
        token_variable: The Collector's environment variable that holds a bearer token.
        user_variables: The Collector's environment variables that hold user and password.
        certificate_file: What the server's certificate is checked against.
        insecure_tls: Whether any certificate is accepted.
        compression: `gzip` or `none`, which MLflow before 3.7 needs.
    """

    traces_url: str
    experiment_id: str | None = None
    workspace: str | None = None
    per_tenant: bool = False
    token_file: str | None = None
    token_variable: str | None = None
    user_variables: tuple[str, str] | None = None
    certificate_file: str | None = None
    insecure_tls: bool = False
    compression: str = "gzip"

    @property
    def credential(self) -> str | None:
        """The extension that adds a credential."""
        if self.user_variables:
            return "basicauth/mlflow"
        return "bearertokenauth/mlflow" if self.token_file or self.token_variable else None

    @property
    def authenticator(self) -> str | None:
        """The extension that the exporter names: it can name one only."""
        return "headers_setter/mlflow" if self.per_tenant else self.credential


def _written(value: str) -> str:
    # A dollar sign would begin a variable of the Collector's.
    return json.dumps(value.replace("$", "$$"), ensure_ascii=False)


def as_yaml(config: CollectorConfig) -> str:
    """The configuration, for `otelcol-contrib --config FILE`."""
    lines = [
        "# Takes OTLP by gRPC and HTTP, and sends traces to MLflow. For otelcol-contrib.",
        "# Made by: mlflow-otlp collector-config",
        *_extensions(config),
        *_receivers(config),
        *_processors(config),
        *_exporters(config),
        *_service(config),
    ]
    return "\n".join(lines) + "\n"


def as_resource(config: CollectorConfig, *, name: str = _NAME, namespace: str | None = None) -> str:
    """The same as a resource of the OpenTelemetry Operator.

    Args:
        config: What the Collector is to do.
        name: The resource's name, also that of the service account, which is to be made beside it.
        namespace: Where it is made; None for whatever `kubectl` uses.
    """
    head = [
        "apiVersion: opentelemetry.io/v1beta1",
        "kind: OpenTelemetryCollector",
        "metadata:",
        f"  name: {_written(name)}",
        *([f"  namespace: {_written(namespace)}"] if namespace else []),
        "spec:",
        "  # What waits lies in a volume, which a Deployment's pods would not keep.",
        "  mode: statefulset",
        "  image: otel/opentelemetry-collector-contrib:latest # pin a version of 0.141 or newer",
        "  replicas: 1",
        f"  serviceAccount: {_written(name)}",
        "  podSecurityContext:",
        "    fsGroup: 10001",
        *_environment(config),
        "  volumeMounts:",
        "    - name: queue",
        f"      mountPath: {_STORAGE}",
        "  volumeClaimTemplates:",
        "    - metadata:",
        "        name: queue",
        "      spec:",
        "        accessModes: [ReadWriteOnce]",
        "        resources:",
        "          requests:",
        "            storage: 2Gi",
        "  config:",
    ]
    body = as_yaml(config).splitlines()
    return "\n".join([*body[:2], *head, *(f"    {line}" for line in body[2:])]) + "\n"


def _environment(config: CollectorConfig) -> Iterator[str]:
    names = [*([config.token_variable] if config.token_variable else []), *(config.user_variables or ())]
    if names:
        yield "  env:"
    for name in names:
        yield f"    - name: {name}"
        yield "      valueFrom:"
        yield "        secretKeyRef:"
        yield "          name: mlflow-credentials"
        yield f"          key: {name}"


def _extensions(config: CollectorConfig) -> Iterator[str]:
    yield "extensions:"
    yield "  health_check:"
    yield "    endpoint: 0.0.0.0:13133"
    yield "  file_storage/mlflow:"
    yield f"    directory: {_STORAGE}"
    yield "    create_directory: true"
    if config.user_variables:
        user, password = config.user_variables
        yield "  basicauth/mlflow:"
        yield "    client_auth:"
        yield f'      username: "${{env:{user}}}"'
        yield f'      password: "${{env:{password}}}"'
    elif config.token_file:
        yield "  bearertokenauth/mlflow:"
        yield "    # Read again when it changes, as a service account's does."
        yield f"    filename: {_written(config.token_file)}"
    elif config.token_variable:
        yield "  bearertokenauth/mlflow:"
        yield f'    token: "${{env:{config.token_variable}}}"'
    if config.per_tenant:
        yield from _headers_setter(config)


def _headers_setter(config: CollectorConfig) -> Iterator[str]:
    yield "  headers_setter/mlflow:"
    if config.credential:
        yield "    # From otelcol-contrib 0.141 on: the exporter names this extension, and this one the credential's."
        yield f"    additional_auth: {config.credential}"
    yield "    headers:"
    defaults = (config.experiment_id or _NO_EXPERIMENT, config.workspace)
    for header, default in zip((EXPERIMENT_HEADER, WORKSPACE_HEADER), defaults, strict=True):
        yield "      - action: upsert"
        yield f"        key: {header}"
        yield f"        from_context: {header}"
        if default == _NO_EXPERIMENT:
            yield "        # So that MLflow refuses it: an empty header it answers with 200, and stores nothing."
        if default:
            yield f"        default_value: {_written(default)}"
    yield "      - action: upsert"
    yield f"        key: {RUN_HEADER}"
    yield f"        from_context: {RUN_HEADER}"


def _receivers(config: CollectorConfig) -> Iterator[str]:
    yield "receivers:"
    yield "  otlp:"
    yield "    protocols:"
    for protocol, port in (("grpc", 4317), ("http", 4318)):
        yield f"      {protocol}:"
        yield f"        endpoint: 0.0.0.0:{port}"
        if protocol == "grpc":
            yield "        max_recv_msg_size_mib: 64 # 4 by default, which one long conversation is larger than"
        if config.per_tenant:
            yield "        include_metadata: true"


def _processors(config: CollectorConfig) -> Iterator[str]:
    yield "processors:"
    yield "  memory_limiter:"
    yield "    check_interval: 1s"
    yield "    limit_percentage: 80"
    yield "    spike_limit_percentage: 20"
    yield "  batch/mlflow:"
    yield "    # Short, as what waits here is lost with the process; the queue behind it is on disk."
    yield "    timeout: 200ms"
    yield "    send_batch_size: 1024"
    if config.per_tenant:
        yield "    metadata_keys:"
        for header in (EXPERIMENT_HEADER, WORKSPACE_HEADER, RUN_HEADER):
            yield f"      - {header}"
        yield "    metadata_cardinality_limit: 1000"


def _exporters(config: CollectorConfig) -> Iterator[str]:
    yield "exporters:"
    yield "  otlphttp/mlflow:"
    yield f"    traces_endpoint: {_written(config.traces_url)}"
    yield f"    compression: {config.compression}"
    yield "    timeout: 30s"
    if config.authenticator:
        yield "    auth:"
        yield f"      authenticator: {config.authenticator}"
    if not config.per_tenant:
        yield "    headers:"
        yield f"      {EXPERIMENT_HEADER}: {_written(config.experiment_id or _NO_EXPERIMENT)}"
        if config.workspace:
            yield f"      {WORKSPACE_HEADER}: {_written(config.workspace)}"
    if config.certificate_file or config.insecure_tls:
        yield "    tls:"
        if config.certificate_file:
            yield f"      ca_file: {_written(config.certificate_file)}"
        if config.insecure_tls:
            yield "      insecure_skip_verify: true"
    yield "    retry_on_failure:"
    yield "      enabled: true"
    yield "      initial_interval: 1s"
    yield "      max_interval: 30s"
    yield "      # Never given up: by default what waits is dropped after 5 minutes, from the queue on disk, too."
    yield "      max_elapsed_time: 0s"
    yield "    sending_queue:"
    yield "      enabled: true"
    yield "      storage: file_storage/mlflow"
    yield "      queue_size: 10000"
    yield "      # MLflow before 3.16 answers 400 to two requests of one trace at once, and 400 is not repeated."
    yield "      num_consumers: 1"


def _service(config: CollectorConfig) -> Iterator[str]:
    extensions = ["health_check", "file_storage/mlflow"]
    # What another one names comes before it.
    extensions += [each for each in (config.credential,) if each]
    extensions += ["headers_setter/mlflow"] if config.per_tenant else []
    yield "service:"
    yield f"  extensions: [{', '.join(extensions)}]"
    yield "  pipelines:"
    yield "    # Traces alone: MLflow takes no metrics and no logs."
    yield "    traces/mlflow:"
    yield "      receivers: [otlp]"
    yield "      processors: [memory_limiter, batch/mlflow]"
    yield "      exporters: [otlphttp/mlflow]"
