"""The service account of a Kubernetes pod: its token, its namespace, the CA of the cluster's services.

MLflow on OpenShift AI and Kubeflow accepts this token and has one workspace per namespace. The token also gives access
to other services, so by default it is sent only over https to a service of the cluster (`*.svc`,
`*.svc.cluster.local`). With `MLFLOW_TRACKING_AUTH=kubernetes`, as in MLflow's own client, it is sent to any tracking
URI.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.config.models import SettingSource
from mlflow_otlp_exporter._internal.config.parsers import parse_workspace

# Tokens of service accounts have 1 to 2 kB.
MAX_TOKEN_BYTES = 65_536
_SERVICES = (".svc", ".svc.cluster.local")
# `requests` reads certificates from these if none are configured. OpenShift AI's charts set the first.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class ServiceAccount(NamedTuple):
    """The files of a pod's service account."""

    directory: str
    token_file: str
    namespace: str | None
    service_ca_file: str | None  # OpenShift's CA of services; None on other clusters

    @classmethod
    def read(cls, directory: str | None) -> "ServiceAccount | None":
        """Return None if the directory has no token, as outside of a pod."""
        if not directory or not os.path.exists(path := os.path.join(directory, "token")):  # noqa: PTH110, PTH118 - at start
            return None
        try:
            content = read_regular_file(Path(directory, "namespace"), MAX_TOKEN_BYTES, follow_symlinks=True)
            namespace = parse_workspace(content.decode("ascii"))
        except (OSError, ValueError):
            namespace = None
        service_ca = Path(directory, "service-ca.crt")
        return cls(directory, path, namespace, str(service_ca) if service_ca.is_file() else None)

    def may_send_token(self, url: str, auth: str) -> bool:
        """Whether the token may be sent to a server; `auth` is `MLFLOW_TRACKING_AUTH`."""
        return auth.startswith("kubernetes") or (url.startswith("https://") and is_cluster_service(url))

    def certificate_file(self, url: str, environment: Mapping[str, str]) -> str | None:
        if not url.startswith("https://") or not is_cluster_service(url) or any(map(environment.get, _BUNDLES)):
            return None
        return self.service_ca_file

    def source(self, name: str) -> SettingSource:
        return SettingSource("service account", os.path.join(self.directory, name))  # noqa: PTH118 - no other use of pathlib here


def is_cluster_service(url: str) -> bool:
    return (urlsplit(url).hostname or "").rstrip(".").endswith(_SERVICES)


def apply_service_account(
    url: str,
    values: dict[str, Any],
    sources: dict[str, SettingSource],
    account: ServiceAccount | None,
    environment: Mapping[str, str],
) -> None:
    """Set `token_file` and `certificate_file` of an MLflow server where no other value is set."""
    if account is None:
        return
    has_credential = any(map(values.get, ("credentials", "token", "token_file", "username", "password")))
    auth = environment.get("MLFLOW_TRACKING_AUTH", "").strip()
    if not has_credential and "authorization" not in values["headers"] and account.may_send_token(url, auth):
        values["token_file"], sources["token_file"] = account.token_file, account.source("token")
    certificate_file = account.certificate_file(url, environment)
    if certificate_file and not values["certificate_file"] and not values["insecure_tls"]:
        values["certificate_file"], sources["certificate_file"] = certificate_file, account.source("service-ca.crt")
