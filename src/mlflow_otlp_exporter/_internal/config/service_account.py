"""What Kubernetes puts into a pod: the token of its service account, its namespace, the CA of the cluster's services.

MLflow on OpenShift AI and Kubeflow takes that token and has a workspace for each namespace. A service account's token
opens more doors than MLflow's, so it goes on its own only where the cluster itself vouches for who gets it: over https,
to a service of the cluster (`*.svc`, `*.svc.cluster.local`). `MLFLOW_TRACKING_AUTH=kubernetes`, as for MLflow's own
client, is the word to send it to whatever the tracking URI names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.config.source import SettingSource

_SERVICES = (".svc", ".svc.cluster.local")
# `requests` takes its certificates from these where none are configured, and OpenShift AI's charts set the first.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class ServiceAccount:
    """The files of a pod's service account.

    Attributes:
        folder: Where they are.
        token_file: The token's file.
        namespace: The pod's namespace.
        service_ca_file: The certificates that OpenShift signs its services' with; None on other clusters.
    """

    folder: str
    token_file: str
    namespace: str | None
    service_ca_file: str | None

    @classmethod
    def found_in(cls, folder: str | None) -> ServiceAccount | None:
        """Looks at a folder; None if it has no token, as outside of a pod."""
        if not folder or not os.path.exists(path := os.path.join(folder, "token")):  # noqa: PTH110, PTH118 - at start
            return None
        try:
            namespace = Path(folder, "namespace").read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            namespace = None
        service_ca = Path(folder, "service-ca.crt")
        return cls(folder, path, namespace, str(service_ca) if service_ca.is_file() else None)

    def vouches_for(self, url: str, auth: str) -> bool:
        """Whether the token may go to a server.

        Args:
            url: The server's address.
            auth: `MLFLOW_TRACKING_AUTH`.
        """
        return auth.startswith("kubernetes") or (url.startswith("https://") and is_service(url))

    def certificates(self, url: str, environment: Mapping[str, str]) -> str | None:
        """The file that a server's certificate is checked against; None if it is not this pod's to say."""
        if not url.startswith("https://") or not is_service(url) or any(map(environment.get, _BUNDLES)):
            return None
        return self.service_ca_file

    def source(self, name: str) -> SettingSource:
        """That a value came from one of these files."""
        return SettingSource("service account", os.path.join(self.folder, name))  # noqa: PTH118 - no other use of pathlib here


def is_service(url: str) -> bool:
    """Whether an address is that of a service of the cluster."""
    return (urlsplit(url).hostname or "").rstrip(".").endswith(_SERVICES)


def completed(
    url: str,
    values: dict[str, Any],
    sources: dict[str, SettingSource],
    account: ServiceAccount | None,
    environment: Mapping[str, str],
) -> None:
    """Fills in what a pod's service account has for a server, where nothing else was given.

    Args:
        url: The address of an MLflow server.
        values: What was given; `token_file` and `certificate_file` are filled in.
        sources: Where each came from.
        account: The pod's; None outside of one.
        environment: Environment variables.
    """
    if account is None:
        return
    given = any(map(values.get, ("credentials", "token", "token_file", "username", "password")))
    auth = environment.get("MLFLOW_TRACKING_AUTH", "").strip()
    if not given and "authorization" not in values["headers"] and account.vouches_for(url, auth):
        values["token_file"], sources["token_file"] = account.token_file, account.source("token")
    certificates = account.certificates(url, environment)
    if certificates and not values["certificate_file"] and not values["insecure_tls"]:
        values["certificate_file"], sources["certificate_file"] = certificates, account.source("service-ca.crt")
