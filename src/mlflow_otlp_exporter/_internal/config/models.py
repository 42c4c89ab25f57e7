"""Resolved settings, as named tuples: dataclasses would take longer to import.

Their fields are described in `schema`, where each setting is declared.
"""

import enum
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

# Attachments with more characters of base64 are not worth the app's memory.
MAX_ATTACHMENT_LENGTH = 32 * 1024 * 1024
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class SettingGroup(enum.Enum):
    """Whose environment variables apply to a server."""

    MLFLOW = "MLflow"
    OTLP = "OTLP"


class SettingSource(NamedTuple):
    """Where a value came from: `argument`, `variable`, `file`, `service account` or `default`, and its name."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return {"argument": f"argument {self.name}=", "variable": f"environment variable {self.name}"}.get(
            self.kind, f"{self.kind} {self.name}".strip()
        )


class ServerSettings(NamedTuple):
    """How to reach one server: an OTLP endpoint, or MLflow's REST API."""

    # The OTLP endpoint's full URL or the MLflow server's base URL, without user and password.
    url: str
    group: SettingGroup
    headers: Mapping[str, str] = _EMPTY  # names in lower case
    token: str | None = None
    token_file: str | None = None
    username: str | None = None
    password: str | None = None
    credentials: Any = None
    credential_provider: str | None = None
    certificate_file: str | None = None
    client_certificate_file: str | None = None
    client_key_file: str | None = None
    insecure_tls: bool = False
    sources: Mapping[str, SettingSource] = _EMPTY
    # Variables that are set but belong to the other group.
    ignored_variables: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ServerSettings({self.address!r}, {self.group.value})"

    @property
    def url_variable(self) -> str:
        """The environment variable of the address, for messages."""
        default = "MLFLOW_TRACKING_URI" if self.group is SettingGroup.MLFLOW else "OTEL_EXPORTER_OTLP_ENDPOINT"
        source = self.sources.get("url")
        return source.name if source is not None and source.kind == "variable" else default

    @property
    def user(self) -> str:
        """The user for messages: in front of a URL's host may be a token."""
        return "the user in the URL" if self.sources.get("username") == self.sources["url"] else f"user {self.username}"

    @property
    def address(self) -> str:
        """The URL for messages: without its query, which may hold a key."""
        return self.url.partition("?")[0]


class BufferSettings(NamedTuple):
    """How many spans wait in memory, and for how long."""

    linger: float
    hold: float
    buffer_spans: int
    buffer_bytes: int


class SpoolSettings(NamedTuple):
    """What is stored on disk, where, and for how long."""

    spool: bool = False
    spool_dir: str | None = None
    spool_max_bytes: int = 512 * 1024 * 1024
    spool_max_age: float = 7 * 86_400.0
    durability: str = "request"
    handle_sigterm: bool = False


class EnrichmentSettings(NamedTuple):
    """What is added to spans and traces, and what is dropped as a duplicate."""

    enrich: bool
    compact: bool
    attachments: bool
    trace_info: bool
    root_wait: float


class PrivacySettings(NamedTuple):
    """What must not leave the app."""

    mask: Callable[[str], str] | tuple[str | re.Pattern[str], ...] | None
    hide: tuple[str, ...]
    base64_max_length: int
    drop_resource: tuple[str, ...]


class AppSettings(NamedTuple):
    """What happens to the app's spans before they are exported."""

    enabled: bool
    verbose: bool | None
    auto_instrument: bool | tuple[str, ...]
    sampling_ratio: float
    ignore_caller_sampling: bool
    noise: tuple[str, ...]
    baggage: tuple[str, ...]


class GatewaySettings(NamedTuple):
    """How `mlflow-otlp gateway` receives spans."""

    gateway_listen: str
    gateway_grpc_listen: str | None
    gateway_tokens_file: str | None
    gateway_certificate_file: str | None
    gateway_key_file: str | None
    gateway_client_ca_file: str | None
    gateway_max_request_size: int
    gateway_max_destinations: int
    gateway_forward_authorization: bool


class Settings(NamedTuple):
    """All settings, resolved."""

    traces: ServerSettings
    # MLflow's REST API; None if the settings name no address of it.
    api: ServerSettings | None
    # False if `api` is a guess from an OTLP endpoint, which may be a Collector's.
    is_api_certain: bool
    # The pod's namespace, used as workspace if the server has one of this name and no workspace is set.
    namespace: str | None
    experiment: str | None
    experiment_id: str | None
    workspace: str | None
    service_account_dir: str | None
    run_id: str | None
    create_experiment: bool
    timeout: float
    compression: str
    max_request_size: int
    metrics: bool
    buffer: BufferSettings
    disk: SpoolSettings
    enrichment: EnrichmentSettings
    privacy: PrivacySettings
    app: AppSettings
    sources: Mapping[str, SettingSource] = _EMPTY

    @property
    def uploads_attachments(self) -> bool:
        """Whether images, audio and files are uploaded."""
        return self.enrichment.attachments and self.api is not None

    @property
    def has_same_server(self) -> bool:
        """Whether OTLP endpoint and REST API are at one server; a Collector in between would have another address."""
        return self.api is not None and urlsplit(self.api.url).netloc == urlsplit(self.traces.url).netloc

    @property
    def base64_max_length(self) -> int:
        """Characters of base64 that an image, audio or file may have inside the app."""
        return MAX_ATTACHMENT_LENGTH if self.uploads_attachments else self.privacy.base64_max_length
