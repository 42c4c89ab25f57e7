"""What a pod's service account gives, and to whom its token goes."""

import os
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.config.credentials import make_credential_source
from mlflow_otlp_exporter._internal.config.describe import describe_settings
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount, is_cluster_service
from support.kubernetes import rotate, service_account

SERVICE = "https://mlflow.opendatahub.svc:8443"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    folder = service_account(tmp_path / "serviceaccount", "planted-token", "team-a")
    (folder / "service-ca.crt").write_text("certificates")
    return folder


def resolve_settings(pod: Path, variables: dict[str, str], **arguments: Any) -> Settings:
    environment = {"HOME": str(pod), "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": str(pod), **variables}
    return resolve(arguments, environment=environment)


@pytest.mark.parametrize("namespace", [b"a\nb", b"\xff", b"x" * 100_000, b"", b"Team"])
def test_read_with_unusable_namespace_file_has_no_namespace(pod: Path, namespace: bytes) -> None:
    (pod / "namespace").unlink()
    (pod / "namespace").write_bytes(namespace)
    account = ServiceAccount.read(str(pod))
    assert account is not None
    assert account.namespace is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_read_with_fifo_as_namespace_does_not_hang(pod: Path) -> None:
    (pod / "namespace").unlink()
    os.mkfifo(pod / "namespace")
    account = ServiceAccount.read(str(pod))
    assert account is not None
    assert account.namespace is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://mlflow.opendatahub.svc:8443", True),
        ("https://mlflow.opendatahub.svc.cluster.local/mlflow", True),
        ("https://MLFLOW.Opendatahub.SVC.", True),
        ("https://mlflow", False),
        ("https://svc", False),
        ("https://mlflow.example.com", False),
        ("https://mlflow.svc.example.com", False),
        ("https://mlflow.opendatahub.svc.evil.com", False),
        ("https://mlflow.opendatahub.svc@evil.com", False),
        ("https://evil.com/mlflow.svc", False),
        ("https://evil.com?mlflow.svc", False),
        ("https://evil.com#mlflow.svc", False),
        ("https://10.0.0.1", False),
        ("https://mlflowsvc", False),
    ],
)
def test_is_cluster_service_checks_host_name(url: str, expected: bool) -> None:
    assert is_cluster_service(url) is expected


@pytest.mark.parametrize(
    ("variables", "arguments", "goes"),
    [
        ({"MLFLOW_TRACKING_URI": SERVICE}, {}, True),
        ({}, {"tracking_uri": SERVICE + "/mlflow"}, True),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.opendatahub.svc:5000"}, {}, False),
        ({"MLFLOW_TRACKING_URI": "https://mlflow.example.com"}, {}, False),
        ({}, {}, False),
        ({"MLFLOW_TRACKING_URI": "https://mlflow.example.com", "MLFLOW_TRACKING_AUTH": "kubernetes"}, {}, True),
        ({"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced"}, {}, True),
        # Another credential is given: this one stays where it is.
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_TOKEN": "mine"}, {}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_TOKEN_FILE": "/elsewhere"}, {}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_USERNAME": "ada"}, {}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE}, {"credentials": "mine"}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE}, {"headers": {"Authorization": "Bearer mine"}}, False),
        # An OTLP endpoint is a Collector's, or anyone's.
        ({}, {"endpoint": SERVICE + "/v1/traces"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SERVICE, "MLFLOW_TRACKING_AUTH": "kubernetes"}, {}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector.svc", "MLFLOW_TRACKING_URI": SERVICE}, {}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": "None"}, {}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": "/nowhere"}, {}, False),
    ],
)
def test_resolve_service_account_token_goes_to_allowed_servers_only(
    pod: Path, variables: dict[str, str], arguments: dict[str, Any], goes: bool
) -> None:
    settings = resolve_settings(pod, variables, **arguments)
    assert (settings.traces.token_file == str(pod / "token")) is goes
    if goes:
        assert make_credential_source(settings.traces).header_value() == "Bearer planted-token"


def test_resolve_service_account_token_is_not_sent_to_collector(pod: Path) -> None:
    settings = resolve_settings(pod, {"MLFLOW_TRACKING_URI": SERVICE}, endpoint="https://collector.svc/v1/traces")
    assert settings.traces.token_file is None
    assert settings.traces.certificate_file is None
    assert settings.api is not None
    assert settings.api.token_file == str(pod / "token")


def test_authorization_rotated_token_is_read_again(pod: Path) -> None:
    credentials = make_credential_source(resolve_settings(pod, {"MLFLOW_TRACKING_URI": SERVICE}).traces)
    assert credentials.header_value() == "Bearer planted-token"
    rotate(pod, "planted-another", "team-a")
    assert credentials.header_value() == "Bearer planted-another"
    assert "planted" not in str(credentials)


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({"MLFLOW_TRACKING_URI": SERVICE}, True),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_TOKEN": "mine"}, True),
        ({"MLFLOW_TRACKING_URI": "https://mlflow.example.com", "MLFLOW_TRACKING_AUTH": "kubernetes"}, False),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.opendatahub.svc"}, False),
        # OpenShift AI's charts set it to a file that also has the system's certificates.
        ({"MLFLOW_TRACKING_URI": SERVICE, "REQUESTS_CA_BUNDLE": "/etc/bundle.pem"}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_INSECURE_TLS": "true"}, False),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_SERVER_CERT_PATH": __file__}, False),
    ],
)
def test_resolve_service_ca_is_used_for_cluster_services_only(pod: Path, variables: dict[str, str], used: bool) -> None:
    settings = resolve_settings(pod, variables)
    assert (settings.traces.certificate_file == str(pod / "service-ca.crt")) is used


def test_resolve_without_service_ca_has_no_certificate_file(pod: Path) -> None:
    (pod / "service-ca.crt").unlink()
    assert resolve_settings(pod, {"MLFLOW_TRACKING_URI": SERVICE}).traces.certificate_file is None


@pytest.mark.parametrize(
    ("variables", "arguments", "workspace", "namespace"),
    [
        ({"MLFLOW_TRACKING_URI": SERVICE}, {}, None, "team-a"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, {}, None, "team-a"),
        ({}, {}, None, None),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_WORKSPACE": "mine"}, {}, "mine", None),
        ({"MLFLOW_TRACKING_URI": SERVICE}, {"headers": {"X-MLflow-Workspace": "mine"}}, None, None),
        ({"MLFLOW_TRACKING_URI": SERVICE}, {"endpoint": "http://collector/v1/traces"}, None, None),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced"}, {}, "team-a", None),
        ({"MLFLOW_TRACKING_URI": SERVICE, "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": "none"}, {}, None, None),
    ],
)
def test_resolve_namespace_is_used_as_workspace(
    pod: Path, variables: dict[str, str], arguments: dict[str, Any], workspace: str | None, namespace: str | None
) -> None:
    settings = resolve_settings(pod, variables, **arguments)
    assert (settings.workspace, settings.namespace) == (workspace, namespace)


def test_describe_settings_shows_values_of_pod(pod: Path) -> None:
    rows = {
        name: (value, source)
        for name, value, source in describe_settings(resolve_settings(pod, {"MLFLOW_TRACKING_URI": SERVICE}))
    }
    assert rows["token_file"] == (str(pod / "token"), f"service account {pod / 'token'}")
    assert rows["workspace"] == ("team-a (if there is one)", f"service account {pod / 'namespace'}")
    assert rows["certificate_file"][1] == f"service account {pod / 'service-ca.crt'}"


def test_read_service_account_without_namespace(pod: Path) -> None:
    (pod / "namespace").unlink()
    account = ServiceAccount.read(str(pod))
    assert account is not None
    assert account.namespace is None


def test_resolve_kubernetes_auth_outside_pod_raises(pod: Path) -> None:
    variables = {"MLFLOW_TRACKING_AUTH": "kubernetes", "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": "none"}
    with pytest.raises(ConfigurationError, match="no pod's service account: expected MLFLOW_TRACKING_TOKEN"):
        resolve_settings(pod, variables)
