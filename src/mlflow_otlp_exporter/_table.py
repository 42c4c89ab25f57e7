"""The table of settings: arguments, environment variables, types, defaults, help.

The tables of docs/configuration.md and README are made from it (`make configuration`), and `mlflow-otlp settings` walks
it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from mlflow_otlp_exporter import _address, _privacy_settings, _values

DEFAULT_TRACKING_URI = "http://localhost:5000"


class Group(enum.Enum):
    """Whose settings apply to a server."""

    MLFLOW = "MLflow"
    OTLP = "OTLP"


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: The argument's name.
        parse: Turns what was written into the value; raises `ValueError` with what was expected.
        default: The value if nothing is given.
        help: One line for people.
        mlflow: Environment variables of MLflow's group; the first that is set wins.
        otlp: Environment variables of OTLP's group; the first that is set wins.
        own: Environment variables that belong to no group.
        guarded: True if variables of one group must not be used for a server that the other group named.
        secret: True if the value is never shown.
    """

    name: str
    parse: _values.Parser
    default: Any
    help: str
    mlflow: tuple[str, ...] = ()
    otlp: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    guarded: bool = False
    secret: bool = False

    @property
    def variables(self) -> tuple[str, ...]:
        """All environment variables, in the order of the documentation."""
        return (*self.own, *self.mlflow, *self.otlp)

    def variables_for(self, group: Group) -> tuple[str, ...]:
        """The environment variables that count for a server of this group, the strongest first."""
        same, other = (self.mlflow, self.otlp) if group is Group.MLFLOW else (self.otlp, self.mlflow)
        return (*self.own, *same) if self.guarded else (*self.own, *same, *other)


def otlp_variables(name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"


_text, _file = _values.text, _values.readable_file
SETTINGS: tuple[Setting, ...] = (
    Setting(
        "endpoint",
        _address.endpoint,
        None,
        "The full address of an OTLP/HTTP endpoint: MLflow's own or a Collector's.",
        otlp=otlp_variables("ENDPOINT"),
    ),
    Setting(
        "tracking_uri",
        _address.tracking_uri,
        DEFAULT_TRACKING_URI,
        "The address of the MLflow server.",
        mlflow=("MLFLOW_TRACKING_URI",),
    ),
    Setting(
        "experiment",
        _values.experiment_name,
        None,
        "The experiment's name. Without one: the experiment named like `service.name`, else `Default`.",
        mlflow=("MLFLOW_EXPERIMENT_NAME",),
    ),
    Setting(
        "experiment_id",
        _values.experiment_id,
        None,
        "The experiment's id, instead of a name: saves the look-up.",
        mlflow=("MLFLOW_EXPERIMENT_ID",),
    ),
    Setting(
        "workspace",
        _values.workspace,
        None,
        "The workspace (OpenShift AI, Kubeflow: the Kubernetes namespace).",
        mlflow=("MLFLOW_WORKSPACE",),
    ),
    Setting("run_id", _text, None, "A run to link the traces to (MLflow 3.14 and newer)."),
    Setting(
        "create_experiment",
        _values.boolean,
        False,
        "Create the experiment if it does not exist. On in `configure()` and in the zero-code path.",
        own=("MLFLOW_OTLP_CREATE_EXPERIMENT",),
    ),
    Setting(
        "token",
        _text,
        None,
        "A bearer token.",
        mlflow=("MLFLOW_TRACKING_TOKEN",),
        guarded=True,
        secret=True,
    ),
    Setting(
        "token_file",
        _values.file_to_be,
        None,
        "A file with a bearer token; read again when it changes.",
        mlflow=("MLFLOW_TRACKING_TOKEN_FILE",),
        guarded=True,
    ),
    Setting(
        "service_account_dir",
        _values.folder_or_none,
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "The pod's service account: its token, its namespace as workspace, and the CA of the cluster's services, where "
        "nothing else is given. The token goes over https to `*.svc` and `*.svc.cluster.local` alone, or to the "
        "tracking URI with `MLFLOW_TRACKING_AUTH=kubernetes`. `none`: not used.",
        own=("MLFLOW_OTLP_SERVICE_ACCOUNT_DIR",),
    ),
    Setting("username", _text, None, "The user's name.", mlflow=("MLFLOW_TRACKING_USERNAME",), guarded=True),
    Setting(
        "password",
        str,
        None,
        "The user's password.",
        mlflow=("MLFLOW_TRACKING_PASSWORD",),
        guarded=True,
        secret=True,
    ),
    Setting(
        "credential_provider",
        _text,
        None,
        "An entry point of `opentelemetry_otlp_credential_provider`, whose `requests.Session` is used.",
        # In upstream's order, which has the general one win.
        otlp=(
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
        ),
        guarded=True,
    ),
    Setting(
        "headers",
        _values.headers,
        {},
        "More request headers, `name=value` with commas between.",
        otlp=otlp_variables("HEADERS"),
        guarded=True,
        secret=True,
    ),
    Setting(
        "timeout",
        _values.seconds,
        10.0,
        "Seconds for the export of one request, with its retries.",
        mlflow=("MLFLOW_HTTP_REQUEST_TIMEOUT",),
        otlp=otlp_variables("TIMEOUT"),
    ),
    Setting(
        "compression",
        _values.compression,
        "none",
        "How bodies over 1 KiB are compressed: `none`, `gzip` or `deflate`.",
        otlp=otlp_variables("COMPRESSION"),
    ),
    Setting(
        "max_request_size",
        _values.size_limit,
        4 * 1024 * 1024,
        "Bytes that a request aims at, before compression; 0 for no limit. A larger trace is cut, a larger span not.",
        own=("MLFLOW_OTLP_MAX_REQUEST_SIZE",),
    ),
    Setting(
        "repair",
        _values.boolean,
        True,
        "Cut or leave out what MLflow is known to refuse, such as a session of over 250 characters, and note it.",
        own=("MLFLOW_OTLP_REPAIR",),
    ),
    Setting(
        "enrich",
        _values.boolean,
        True,
        "Add what MLflow's console, search and scorers read; see docs/enrichment.md.",
        own=("MLFLOW_OTLP_ENRICH",),
    ),
    Setting(
        "compact",
        _values.boolean,
        False,
        "Drop attributes whose content the added ones carry; `configure()` does so towards MLflow.",
        own=("MLFLOW_OTLP_COMPACT",),
    ),
    Setting(
        "rename_tools",
        _values.boolean,
        True,
        "Name a tool's span like the tool, which is what MLflow counts tools by; the old name stays in an attribute.",
        own=("MLFLOW_OTLP_RENAME_TOOLS",),
    ),
    Setting(
        "mask",
        _privacy_settings.mask,
        None,
        "What is masked before anything is read or written: `email`, `keys`, `cards`, `phones`; as an argument also "
        "compiled expressions, or a function; see docs/privacy.md.",
        own=("MLFLOW_OTLP_MASK",),
    ),
    Setting(
        "hide",
        _privacy_settings.hidden,
        (),
        "What is hidden, as OpenInference's instrumentations do it, in every convention; see docs/privacy.md.",
        own=_privacy_settings.HIDE_VARIABLES,
    ),
    Setting(
        "base64_max_length",
        _privacy_settings.characters,
        512 * 1024,
        "Characters of base64 that an image, a sound or a file may have; a larger one becomes a text with its size.",
        own=("MLFLOW_OTLP_BASE64_MAX_LENGTH", "OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH"),
    ),
    Setting(
        "attachments",
        _values.boolean,
        False,
        "Upload images, sounds and files of 10,000 characters of base64 and more to MLflow (3.11 and newer), and refer "
        "to them in spans; see docs/attachments.md.",
        own=("MLFLOW_OTLP_ATTACHMENTS",),
    ),
    Setting(
        "drop_resource",
        _privacy_settings.globs,
        ("service.instance.id", "process.*", "host.*", "telemetry.sdk.*", "telemetry.auto.*"),
        "Resource attributes that `compact` leaves out, as MLflow makes a tag of each; `none` for none.",
        own=("MLFLOW_OTLP_DROP_RESOURCE",),
    ),
    Setting(
        "trace_info",
        _values.boolean,
        None,
        "Tell MLflow over its REST API what OTLP has no place for. Without it: servers before 3.14, the names, tags, "
        "sessions and users of traces. True: all servers, source and metadata, too. False: none.",
        own=("MLFLOW_OTLP_TRACE_INFO",),
    ),
    Setting(
        "linger",
        _values.seconds,
        0.1,
        "Seconds that a whole trace waits for others to share a request with.",
        own=("MLFLOW_OTLP_LINGER",),
    ),
    Setting(
        "hold",
        _values.seconds,
        45.0,
        "Seconds that an ended span waits for its trace to be whole, at most.",
        own=("MLFLOW_OTLP_HOLD",),
    ),
    Setting(
        "buffer_spans",
        _values.positive_integer,
        65_536,
        "How many spans may wait in memory; those that come then are refused.",
        own=("MLFLOW_OTLP_BUFFER_SPANS",),
    ),
    Setting(
        "buffer_bytes",
        _values.positive_integer,
        64 * 1024 * 1024,
        "How many bytes of spans, as estimated, may wait in memory.",
        own=("MLFLOW_OTLP_BUFFER_BYTES",),
    ),
    Setting(
        "spool",
        _values.boolean,
        False,
        "Keep on disk what the server does not take now. On in `configure()` and in the zero-code path towards MLflow.",
        own=("MLFLOW_OTLP_SPOOL",),
    ),
    Setting(
        "spool_dir",
        _values.folder,
        None,
        "The folder for what is kept on disk. Without one: `mlflow-otlp-exporter` in `$XDG_STATE_HOME`, else in "
        "`~/.local/state`, else a temporary folder.",
        own=("MLFLOW_OTLP_SPOOL_DIR",),
    ),
    Setting(
        "spool_max_bytes",
        _values.positive_integer,
        512 * 1024 * 1024,
        "How many bytes may lie on disk for a target; the oldest go first.",
        own=("MLFLOW_OTLP_SPOOL_MAX_BYTES",),
    ),
    Setting(
        "spool_max_age",
        _values.seconds,
        7 * 86_400.0,
        "Seconds after which spans on disk are given up, if the server still does not take them.",
        own=("MLFLOW_OTLP_SPOOL_MAX_AGE",),
    ),
    Setting(
        "spool_fsync",
        _values.boolean,
        False,
        "Wait until the disk itself has the spans: survives a power cut, not only a killed process.",
        own=("MLFLOW_OTLP_SPOOL_FSYNC",),
    ),
    Setting(
        "durability",
        _values.durability,
        "request",
        "What survives `kill -9`: each `request` that was put on disk, or `every-span` from its end on.",
        own=("MLFLOW_OTLP_DURABILITY",),
    ),
    Setting(
        "handle_sigterm",
        _values.boolean,
        False,
        "Put on disk what is in memory when SIGTERM comes and the app does not handle it. On in `configure()`.",
        own=("MLFLOW_OTLP_HANDLE_SIGTERM",),
    ),
    Setting(
        "enabled",
        _values.boolean,
        True,
        "False: `configure()` and the zero-code path do nothing. So they do with `OTEL_SDK_DISABLED=true`.",
        own=("MLFLOW_OTLP_ENABLED",),
    ),
    Setting(
        "auto_instrument",
        _values.boolean_or_names,
        True,
        "Whether `configure()` switches on the instrumentations that are installed; or the names of some; `-name`: all "
        "but that one.",
        own=("MLFLOW_OTLP_AUTO_INSTRUMENT",),
    ),
    Setting(
        "sampling_ratio",
        _values.ratio,
        1.0,
        "Which part of the traces is sent, from 0 to 1; by trace id, so that all processes choose the same ones.",
        mlflow=("MLFLOW_TRACE_SAMPLING_RATIO",),
    ),
    Setting(
        "noise",
        _values.words,
        ("default",),
        "Traces that are left out: `default`, those of HTTP, database and messaging spans alone; `all`, those without "
        "any span of an agent or model; `none`; or names of instrumentation scopes that make up the whole of a trace.",
        own=("MLFLOW_OTLP_NOISE",),
    ),
    Setting(
        "baggage",
        _values.names_among("session", "user", "workspace", "experiment", "run_id"),
        (),
        "What is taken from the baggage of incoming requests: some of `session`, `user`, `workspace`, `experiment`, "
        "`run_id`.",
        own=("MLFLOW_OTLP_BAGGAGE",),
    ),
    Setting(
        "certificate_file",
        _file,
        None,
        "A file with the certificates (CA) that the server's is checked against.",
        mlflow=("MLFLOW_TRACKING_SERVER_CERT_PATH",),
        otlp=otlp_variables("CERTIFICATE"),
        guarded=True,
    ),
    Setting(
        "client_certificate_file",
        _file,
        None,
        "A file with the client's certificate (mTLS).",
        mlflow=("MLFLOW_TRACKING_CLIENT_CERT_PATH",),
        otlp=otlp_variables("CLIENT_CERTIFICATE"),
        guarded=True,
    ),
    Setting(
        "client_key_file",
        _file,
        None,
        "A file with the client's key, if it is not in the certificate's file.",
        otlp=otlp_variables("CLIENT_KEY"),
        guarded=True,
    ),
    Setting(
        "insecure_tls",
        _values.boolean,
        False,
        "Accept any certificate: for tries only.",
        mlflow=("MLFLOW_TRACKING_INSECURE_TLS",),
        guarded=True,
    ),
)


def written(value: Any) -> str:
    """A value as it is written into a variable."""
    return ",".join(str(getattr(each, "pattern", each)) for each in value) if isinstance(value, tuple) else str(value)
