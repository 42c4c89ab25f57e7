"""The table of settings. Each setting is declared here once.

`make configuration` generates the tables of docs/configuration.md and README from it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.config import parsers, urls
from mlflow_otlp_exporter._internal.config.models import (
    AppSettings,
    BufferSettings,
    EnrichmentSettings,
    GatewaySettings,
    PrivacySettings,
    ServerSettings,
    SettingGroup,
    Settings,
    SpoolSettings,
)
from mlflow_otlp_exporter._internal.config.parsers import Parser

DEFAULT_TRACKING_URI = "http://localhost:5000"
HIDE_VARIABLE = "OPENINFERENCE_HIDE_"
OWN_VARIABLE = "MLFLOW_OTLP_"


class Setting(NamedTuple):
    """One setting. `name` is both the argument's name and the field's name in `model`."""

    name: str
    # The model with the value; None for the two settings that the resolver combines to a server's URL.
    model: type | None
    parse: Parser
    # In the order of the documentation: this library's own, MLflow's, OpenTelemetry's.
    variables: tuple[str, ...]
    default: Any = None
    is_secret: bool = False
    description: str = ""

    def describe(self, description: str) -> "Setting":
        return self._replace(description=description)

    @property
    def is_bound_to_server(self) -> bool:
        """Whether variables of one group must not be used for a server that the other group names."""
        return self.model is ServerSettings

    def variables_for(self, group: SettingGroup) -> tuple[str, ...]:
        """The variables that apply to a server of this group, in descending precedence."""
        own = tuple(name for name in self.variables if name.startswith((OWN_VARIABLE, "OPENINFERENCE_")))
        otlp = tuple(name for name in self.variables if name.startswith("OTEL_"))
        mlflow = tuple(name for name in self.variables if name not in own + otlp)
        same, other = (mlflow, otlp) if group is SettingGroup.MLFLOW else (otlp, mlflow)
        return own + same if self.is_bound_to_server else own + same + other


def otlp_variables(name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"


SETTINGS: tuple[Setting, ...] = (
    Setting("endpoint", None, urls.parse_endpoint, otlp_variables("ENDPOINT")).describe(
        "The full URL of an OTLP/HTTP endpoint: MLflow's own or a Collector's. `OTEL_EXPORTER_OTLP_ENDPOINT` is the "
        "base URL, to which `/v1/traces` is appended."
    ),
    Setting("tracking_uri", None, urls.parse_tracking_uri, ("MLFLOW_TRACKING_URI",), DEFAULT_TRACKING_URI).describe(
        "The URL of the MLflow server."
    ),
    Setting("experiment", Settings, parsers.parse_experiment_name, ("MLFLOW_EXPERIMENT_NAME",)).describe(
        "The experiment's name. If not set: the experiment named like `service.name` (`configure()` creates it if it "
        "is missing), otherwise `Default`."
    ),
    Setting("experiment_id", Settings, parsers.parse_experiment_id, ("MLFLOW_EXPERIMENT_ID",)).describe(
        "The experiment's id, instead of a name: saves the look-up."
    ),
    Setting("workspace", Settings, parsers.parse_workspace, ("MLFLOW_WORKSPACE",)).describe(
        "The workspace (OpenShift AI, Kubeflow: the Kubernetes namespace)."
    ),
    Setting("run_id", Settings, parsers.parse_text, ()).describe(
        "A run to link the traces to (before MLflow 3.14 with a trace metadata update)."
    ),
    Setting(
        "create_experiment", Settings, parsers.parse_boolean, ("MLFLOW_OTLP_CREATE_EXPERIMENT",), default=False
    ).describe("Create the experiment if it does not exist. On in `configure()` and without code changes."),
    Setting("token", ServerSettings, parsers.parse_text, ("MLFLOW_TRACKING_TOKEN",), is_secret=True).describe(
        "A bearer token."
    ),
    Setting("token_file", ServerSettings, parsers.parse_optional_file, ("MLFLOW_TRACKING_TOKEN_FILE",)).describe(
        "A file with a bearer token; read again when it changes."
    ),
    Setting(
        "service_account_dir",
        Settings,
        parsers.parse_directory_or_none,
        ("MLFLOW_OTLP_SERVICE_ACCOUNT_DIR",),
        "/var/run/secrets/kubernetes.io/serviceaccount",
    ).describe(
        "The pod's service account. Its token, its namespace (as workspace) and the CA of the cluster's services are "
        "used where no other value is set. The token is sent only over https to `*.svc` and `*.svc.cluster.local`, or "
        "to the tracking URI, also over plain http, with `MLFLOW_TRACKING_AUTH=kubernetes`. `none`: not used."
    ),
    Setting("username", ServerSettings, parsers.parse_text, ("MLFLOW_TRACKING_USERNAME",)).describe("The user's name."),
    Setting("password", ServerSettings, str, ("MLFLOW_TRACKING_PASSWORD",), is_secret=True).describe(
        "The user's password."
    ),
    # The variables are in upstream's order: the general one has precedence.
    Setting(
        "credential_provider",
        ServerSettings,
        parsers.parse_text,
        (
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
        ),
    ).describe("An entry point of `opentelemetry_otlp_credential_provider`, whose `requests.Session` is used."),
    Setting("headers", ServerSettings, parsers.parse_headers, otlp_variables("HEADERS"), {}, is_secret=True).describe(
        "More request headers, `name=value` with commas between."
    ),
    Setting(
        "timeout", Settings, parsers.parse_seconds, ("MLFLOW_HTTP_REQUEST_TIMEOUT", *otlp_variables("TIMEOUT")), 10.0
    ).describe(
        "Time limit in seconds for each HTTP request, and for how long `export()` waits. Retries continue in the "
        "background."
    ),
    Setting(
        "compression", Settings, parsers.one_of("none", "gzip", "deflate"), otlp_variables("COMPRESSION"), "none"
    ).describe("How bodies are compressed: `none`, `gzip` or `deflate`."),
    Setting(
        "max_request_size", Settings, parsers.parse_size_limit, ("MLFLOW_OTLP_MAX_REQUEST_SIZE",), 4 * 1024 * 1024
    ).describe(
        "Target size of a request in bytes, before compression; 0 for no limit. A larger trace is split, a larger span "
        "is not."
    ),
    Setting("enrich", EnrichmentSettings, parsers.parse_boolean, ("MLFLOW_OTLP_ENRICH",), default=True).describe(
        "Add what MLflow's console, search and scorers read; see docs/enrichment.md."
    ),
    Setting("compact", EnrichmentSettings, parsers.parse_boolean, ("MLFLOW_OTLP_COMPACT",), default=False).describe(
        "Drop attributes whose content enrichment has copied. On in `configure()` if spans go to MLflow."
    ),
    Setting("mask", PrivacySettings, parsers.parse_mask, ("MLFLOW_OTLP_MASK",)).describe(
        "What is masked in spans, before any other step: `email`, `keys`, `cards`, `phones`; as an argument also "
        "compiled expressions, or a function; see docs/privacy.md."
    ),
    Setting(
        "hide",
        PrivacySettings,
        parsers.parse_hidden,
        tuple(HIDE_VARIABLE + name.upper() for name in parsers.HIDEABLE),
        (),
    ).describe(
        "Content to hide. The variables are those of OpenInference's instrumentations, but apply to spans of every "
        "convention; see docs/privacy.md."
    ),
    Setting(
        "base64_max_length",
        PrivacySettings,
        parsers.parse_length,
        ("MLFLOW_OTLP_BASE64_MAX_LENGTH", "OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH"),
        512 * 1024,
    ).describe(
        "Characters of base64 that an image, audio or another file may have; a larger one is replaced by its size."
    ),
    Setting(
        "attachments", EnrichmentSettings, parsers.parse_boolean, ("MLFLOW_OTLP_ATTACHMENTS",), default=False
    ).describe(
        "Upload images, audio and files of 10,000 characters of base64 and more to MLflow (3.11 and newer), and refer "
        "to them in spans; see docs/attachments.md."
    ),
    Setting(
        "drop_resource",
        PrivacySettings,
        parsers.parse_globs,
        ("MLFLOW_OTLP_DROP_RESOURCE",),
        ("service.instance.id", "process.*", "host.*", "telemetry.sdk.*", "telemetry.auto.*"),
    ).describe("Resource attributes that `compact` drops, because MLflow stores each as a tag; `none`: drop none."),
    Setting(
        "trace_info", EnrichmentSettings, parsers.parse_boolean, ("MLFLOW_OTLP_TRACE_INFO",), default=False
    ).describe(
        "Send the source (the name of the program) and OpenInference's metadata of each trace over MLflow's REST API, "
        "to servers of all versions. Servers before 3.14 get names, tags, sessions, users and runs in any case; see "
        "docs/compatibility.md."
    ),
    Setting("root_wait", EnrichmentSettings, parsers.parse_wait, ("MLFLOW_OTLP_ROOT_WAIT",), 60.0).describe(
        "Seconds that a trace whose caller is another process waits for its root in MLflow. Then, or when this process "
        "ends, the first span of this process gives it name, state, request, response and tags. 0: at once, for "
        "serverless functions. `none`: never."
    ),
    Setting("linger", BufferSettings, parsers.parse_seconds, ("MLFLOW_OTLP_LINGER",), 0.1).describe(
        "Seconds that a trace waits after its local root and all its open children in this process have ended, so that "
        "several traces can share a request."
    ),
    Setting("hold", BufferSettings, parsers.parse_seconds, ("MLFLOW_OTLP_HOLD",), 45.0).describe(
        "The longest time in seconds that an ended span waits for the rest of its trace."
    ),
    Setting(
        "buffer_spans", BufferSettings, parsers.parse_positive_integer, ("MLFLOW_OTLP_BUFFER_SPANS",), 65_536
    ).describe("How many spans may wait in memory; further spans are dropped."),
    Setting(
        "buffer_bytes", BufferSettings, parsers.parse_positive_integer, ("MLFLOW_OTLP_BUFFER_BYTES",), 64 * 1024 * 1024
    ).describe("How many bytes of spans, as estimated, may wait in memory; further spans are dropped."),
    Setting("spool", SpoolSettings, parsers.parse_boolean, ("MLFLOW_OTLP_SPOOL",), default=False).describe(
        "Store spans on disk while the server does not accept them. On in `configure()` and without code changes, "
        "if spans go to MLflow."
    ),
    Setting("spool_dir", SpoolSettings, parsers.parse_directory, ("MLFLOW_OTLP_SPOOL_DIR",)).describe(
        "The folder of the spool. Without one: `mlflow-otlp-exporter` in `$XDG_STATE_HOME`, in `%LOCALAPPDATA%` on "
        "Windows, in `~/.local/state`, or a temporary folder."
    ),
    Setting(
        "spool_max_bytes",
        SpoolSettings,
        parsers.parse_positive_integer,
        ("MLFLOW_OTLP_SPOOL_MAX_BYTES",),
        512 * 1024 * 1024,
    ).describe(
        "How many bytes the spool of one target and credential may have; the oldest requests are dropped first."
    ),
    Setting(
        "spool_max_age", SpoolSettings, parsers.parse_seconds, ("MLFLOW_OTLP_SPOOL_MAX_AGE",), 7 * 86_400.0
    ).describe("Seconds after which spans on disk are dropped if the server still does not accept them."),
    Setting(
        "durability", SpoolSettings, parsers.one_of("request", "every-span"), ("MLFLOW_OTLP_DURABILITY",), "request"
    ).describe(
        "What survives `kill -9`. `request`: requests in the spool. `every-span`: every span that has ended, with "
        "`configure()` or `MLflowSpanProcessor`; without code changes, every span that OpenTelemetry's batch processor "
        "has exported."
    ),
    Setting(
        "handle_sigterm", SpoolSettings, parsers.parse_boolean, ("MLFLOW_OTLP_HANDLE_SIGTERM",), default=False
    ).describe(
        "On SIGTERM and SIGHUP, if the app does not handle them: send spans for 2.5 s, then write the rest to disk. On "
        "in `configure()` and without code changes if spans go to MLflow; needs the spool."
    ),
    Setting("enabled", AppSettings, parsers.parse_boolean, ("MLFLOW_OTLP_ENABLED",), default=True).describe(
        "False: `configure()` and auto-instrumentation do nothing. `OTEL_SDK_DISABLED=true` has the same effect."
    ),
    Setting("verbose", AppSettings, parsers.parse_boolean, ("MLFLOW_OTLP_VERBOSE",)).describe(
        "Print to stderr where traces go, and links to the experiment and the first trace in MLflow. Unset: only in a "
        "terminal or a notebook, not in CI and pods. `true`: always. `false`: never."
    ),
    Setting(
        "auto_instrument", AppSettings, parsers.parse_boolean_or_names, ("MLFLOW_OTLP_AUTO_INSTRUMENT",), default=True
    ).describe(
        "Which installed instrumentations `configure()` activates: `true` (all), `false` (none), names to activate, or "
        "names with a leading `-` to exclude."
    ),
    Setting("sampling_ratio", AppSettings, parsers.parse_ratio, ("MLFLOW_TRACE_SAMPLING_RATIO",), 1.0).describe(
        "Share of the traces that is sent, from 0 to 1; by trace id, so that all processes choose the same ones."
    ),
    Setting(
        "ignore_caller_sampling",
        AppSettings,
        parsers.parse_boolean,
        ("MLFLOW_OTLP_IGNORE_CALLER_SAMPLING",),
        default=False,
    ).describe(
        "Record a trace even if its caller did not sample it (`traceparent` with the flag 00, as load balancers send "
        "it): the application's sampler decides as for a trace without caller."
    ),
    Setting("noise", AppSettings, parsers.parse_names, ("MLFLOW_OTLP_NOISE",), ("default",)).describe(
        "Which traces are filtered out. `default`: those with spans of HTTP, databases, messaging and coding agents' "
        "runtime only, without content of a model, tool, agent or retriever. `all`: those "
        "without a span of an agent or a model. `none`: no traces. Names of instrumentation scopes: those that "
        "contain only spans of these scopes."
    ),
    Setting(
        "baggage",
        AppSettings,
        parsers.choices("session", "user", "workspace", "experiment", "run_id"),
        ("MLFLOW_OTLP_BAGGAGE",),
        (),
    ).describe(
        "What is read from the baggage of incoming requests: some of `session`, `user`, `workspace`, `experiment`, "
        "`run_id`."
    ),
    Setting(
        "metrics",
        Settings,
        parsers.parse_boolean,
        ("MLFLOW_OTLP_METRICS", "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"),
        default=False,
    ).describe("Report OpenTelemetry metrics to the app's meter provider; see docs/monitoring.md."),
    Setting(
        "certificate_file",
        ServerSettings,
        parsers.parse_readable_file,
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", *otlp_variables("CERTIFICATE")),
    ).describe("A file with the CA certificates that the server's certificate is verified against."),
    Setting(
        "client_certificate_file",
        ServerSettings,
        parsers.parse_readable_file,
        ("MLFLOW_TRACKING_CLIENT_CERT_PATH", *otlp_variables("CLIENT_CERTIFICATE")),
    ).describe("A file with the client's certificate (mTLS)."),
    Setting("client_key_file", ServerSettings, parsers.parse_readable_file, otlp_variables("CLIENT_KEY")).describe(
        "A file with the client's key, if it is not in the certificate's file."
    ),
    Setting(
        "insecure_tls", ServerSettings, parsers.parse_boolean, ("MLFLOW_TRACKING_INSECURE_TLS",), default=False
    ).describe("Disable certificate verification (testing only)."),
    Setting(
        "gateway_listen",
        GatewaySettings,
        parsers.parse_listen_address,
        ("MLFLOW_OTLP_GATEWAY_LISTEN",),
        "127.0.0.1:4318",
    ).describe("`mlflow-otlp gateway`: the address for OTLP/HTTP. `0.0.0.0:4318` is reachable from other machines."),
    Setting(
        "gateway_grpc_listen",
        GatewaySettings,
        parsers.parse_listen_address_or_none,
        ("MLFLOW_OTLP_GATEWAY_GRPC_LISTEN",),
        "127.0.0.1:4317",
    ).describe("`mlflow-otlp gateway`: the address for OTLP/gRPC; `none`: none."),
    Setting(
        "gateway_tokens_file", GatewaySettings, parsers.parse_optional_file, ("MLFLOW_OTLP_GATEWAY_TOKENS_FILE",)
    ).describe(
        "`mlflow-otlp gateway`: a JSON file with bearer tokens and the destinations that each may write to; read again "
        "when it changes. Without it, every client may write everywhere."
    ),
    Setting(
        "gateway_certificate_file",
        GatewaySettings,
        parsers.parse_readable_file,
        ("MLFLOW_OTLP_GATEWAY_CERTIFICATE_FILE",),
    ).describe("`mlflow-otlp gateway`: a file with the gateway's certificate, for TLS."),
    Setting(
        "gateway_key_file", GatewaySettings, parsers.parse_readable_file, ("MLFLOW_OTLP_GATEWAY_KEY_FILE",)
    ).describe("`mlflow-otlp gateway`: a file with the key of the certificate."),
    Setting(
        "gateway_client_ca_file", GatewaySettings, parsers.parse_readable_file, ("MLFLOW_OTLP_GATEWAY_CLIENT_CA_FILE",)
    ).describe(
        "`mlflow-otlp gateway`: a file with the CA certificates of clients; spans are taken only from clients with "
        "a certificate of them (mTLS)."
    ),
    Setting(
        "gateway_max_request_size",
        GatewaySettings,
        parsers.parse_positive_integer,
        ("MLFLOW_OTLP_GATEWAY_MAX_REQUEST_SIZE",),
        20 * 1024 * 1024,
    ).describe("`mlflow-otlp gateway`: the largest request in bytes, before and after decompression."),
    Setting(
        "gateway_max_destinations",
        GatewaySettings,
        parsers.parse_positive_integer,
        ("MLFLOW_OTLP_GATEWAY_MAX_DESTINATIONS",),
        1000,
    ).describe(
        "`mlflow-otlp gateway`: how many different workspaces and experiments clients may name until a restart; spans "
        "for further ones are rejected."
    ),
    Setting(
        "gateway_forward_authorization",
        GatewaySettings,
        parsers.parse_boolean,
        ("MLFLOW_OTLP_GATEWAY_FORWARD_AUTHORIZATION",),
        default=False,
    ).describe(
        "`mlflow-otlp gateway`: send each client's spans to MLflow with the client's header `authorization` instead of "
        "the gateway's own credential. Spans are kept in memory only then."
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def select_settings(arguments: Mapping[str, Any], *models: type) -> dict[str, Any]:
    """Select the settings, or those of some models, among the `locals()` of a function with settings as parameters."""
    names = (
        [name for name, setting in BY_NAME.items() if setting.model in models] if models else (*BY_NAME, "credentials")
    )
    return {name: arguments[name] for name in names if name in arguments}


def fields_of(model: type) -> tuple[Setting, ...]:
    return tuple(setting for setting in SETTINGS if setting.model is model)


def format_value(value: Any) -> str:
    return ",".join(str(getattr(item, "pattern", item)) for item in value) if isinstance(value, tuple) else str(value)
