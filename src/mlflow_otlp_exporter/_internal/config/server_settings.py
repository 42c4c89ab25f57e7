"""How to reach one server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_otlp_exporter._internal.config.setting import SettingGroup
from mlflow_otlp_exporter._internal.config.source import SettingSource


@dataclass(frozen=True, repr=False)
class ServerSettings:
    """How to reach one server: an OTLP endpoint, or MLflow's REST side.

    Attributes:
        url: The OTLP endpoint's full address, or the MLflow server's base address; without user and password.
        group: Whose variables apply.
        headers: Further headers by lower-case name.
        token, token_file, username, password: Credentials; `_credentials` decides which count.
        credentials: What was given as `credentials=`.
        credential_provider: The entry point whose session is used, unless there is one of the user's.
        certificate_file, client_certificate_file, client_key_file, insecure_tls: TLS.
        sources: Where each value came from, by the setting's name.
        unused: Variables that are set but belong to the other group.
    """

    url: str
    group: SettingGroup
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    credentials: Any = field(default=None, repr=False)
    credential_provider: str | None = None
    certificate_file: str | None = None
    client_certificate_file: str | None = None
    client_key_file: str | None = None
    insecure_tls: bool = False
    sources: Mapping[str, SettingSource] = field(default_factory=dict, repr=False)
    unused: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ServerSettings({self.address!r}, {self.group.value})"

    @property
    def address(self) -> str:
        """The address without its query, which may hold a key: for people."""
        return self.url.partition("?")[0]
