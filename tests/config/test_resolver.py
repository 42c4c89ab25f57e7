"""Where settings come from, which of them counts, and what is said about a wrong one."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.config.credentials import make_credential_source
from mlflow_otlp_exporter._internal.config.describe import describe_settings
from mlflow_otlp_exporter._internal.config.models import GatewaySettings, SettingGroup, Settings, SettingSource
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from mlflow_otlp_exporter._internal.spool.directory import candidate_roots

MLFLOW, OTLP = SettingGroup.MLFLOW, SettingGroup.OTLP
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def resolve_settings(environment: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    return resolve(arguments, environment={"HOME": "/nowhere", **(environment or {})})


TARGETS: list[tuple[dict[str, str], dict[str, str], str, SettingGroup, str | None]] = [
    # arguments, variables; the OTLP endpoint, its group, MLflow's REST side
    ({}, {}, "http://localhost:5000/v1/traces", MLFLOW, "http://localhost:5000"),
    ({}, {BASE: "http://c:4318/"}, "http://c:4318/v1/traces", OTLP, "http://c:4318"),
    ({}, {BASE: "http://c:4318", "MLFLOW_TRACKING_URI": "http://m"}, "http://m/v1/traces", MLFLOW, "http://m"),
    ({}, {TRACES: "http://c/x", "MLFLOW_TRACKING_URI": "http://m"}, "http://c/x", OTLP, "http://m"),
    ({}, {TRACES: "http://c/x"}, "http://c/x", OTLP, None),
    ({}, {TRACES: "http://c/v1/traces"}, "http://c/v1/traces", OTLP, "http://c"),
    ({"tracking_uri": "http://a"}, {TRACES: "http://c/x"}, "http://a/v1/traces", MLFLOW, "http://a"),
    ({"endpoint": "http://e/t"}, {"MLFLOW_TRACKING_URI": "http://m"}, "http://e/t", OTLP, "http://m"),
    ({"endpoint": "http://e/t", "tracking_uri": "http://a"}, {}, "http://e/t", OTLP, "http://a"),
    ({}, {TRACES: " ", "MLFLOW_TRACKING_URI": ""}, "http://localhost:5000/v1/traces", MLFLOW, "http://localhost:5000"),
    ({"tracking_uri": "http://h/mlf/"}, {}, "http://h/mlf/v1/traces", MLFLOW, "http://h/mlf"),
]


@pytest.mark.parametrize(("arguments", "variables", "endpoint", "group", "api"), TARGETS)
def test_resolve_target_follows_precedence(
    arguments: dict[str, str], variables: dict[str, str], endpoint: str, group: SettingGroup, api: str | None
) -> None:
    settings = resolve_settings(variables, **arguments)
    assert (settings.traces.url, settings.traces.group) == (endpoint, group)
    assert (settings.api and settings.api.url) == api


def test_resolve_endpoint_alone_marks_api_as_guess() -> None:
    assert not resolve_settings(endpoint="http://c/v1/traces").is_api_certain
    assert resolve_settings({"MLFLOW_TRACKING_URI": "http://m"}, endpoint="http://c/v1/traces").is_api_certain
    assert resolve_settings(tracking_uri="http://m").is_api_certain


SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "mlflow-token",
    "MLFLOW_TRACKING_USERNAME": "mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=otlp-key",
}


def test_resolve_secrets_of_one_group_stay_from_server_of_other() -> None:
    mlflow = resolve_settings({**SECRETS, "MLFLOW_TRACKING_URI": "http://m"}).traces
    assert (mlflow.token, mlflow.password, dict(mlflow.headers)) == ("mlflow-token", "mlflow-password", {})
    assert mlflow.ignored_variables == ("OTEL_EXPORTER_OTLP_HEADERS",)
    otlp = resolve_settings({**SECRETS, BASE: "http://c"}).traces
    assert (otlp.token, otlp.username, otlp.password) == (None, None, None)
    assert dict(otlp.headers) == {"authorization": "otlp-key"}
    assert set(otlp.ignored_variables) == set(SECRETS) - {"OTEL_EXPORTER_OTLP_HEADERS"}


def test_resolve_collector_and_mlflow_have_own_variables() -> None:
    settings = resolve_settings({**SECRETS, TRACES: "http://c/x", "MLFLOW_TRACKING_URI": "http://m"})
    assert settings.traces.token is None
    assert settings.api is not None
    assert (settings.api.token, dict(settings.api.headers)) == ("mlflow-token", {})


def test_resolve_certificates_stay_with_their_group(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("x")
    variables = {
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH": str(file),
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(file),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(file),
    }
    mlflow = resolve_settings(variables, tracking_uri="https://m").traces
    assert (mlflow.insecure_tls, mlflow.client_certificate_file, mlflow.certificate_file) == (True, str(file), None)
    otlp = resolve_settings(variables, endpoint="https://c/x").traces
    assert (otlp.insecure_tls, otlp.client_certificate_file, otlp.certificate_file) == (False, None, str(file))
    assert otlp.client_key_file == str(file)


def test_resolve_header_arguments_are_merged_over_own_group() -> None:
    settings = resolve_settings({"OTEL_EXPORTER_OTLP_HEADERS": "a=1,b=2"}, endpoint="http://c/x", headers={"B": "3"})
    assert dict(settings.traces.headers) == {"a": "1", "b": "3"}
    settings = resolve_settings({"OTEL_EXPORTER_OTLP_HEADERS": "a=1"}, tracking_uri="http://m", headers={"x": "y"})
    assert dict(settings.traces.headers) == {"x": "y"}


def test_resolve_unbound_setting_reads_both_groups_own_first() -> None:
    both = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7", "OTEL_EXPORTER_OTLP_TIMEOUT": "8"}
    assert resolve_settings(both).timeout == 7
    assert resolve_settings(both, endpoint="http://c").timeout == 8
    assert resolve_settings({**both, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "9"}, endpoint="http://c").timeout == 9
    assert resolve_settings({"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}).compression == "gzip"
    assert resolve_settings(both, timeout=1).timeout == 1


def test_resolve_argument_replaces_header_of_variable() -> None:
    variables = {"OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=1,x-mlflow-workspace=a", BASE: "http://c"}
    assert set(resolve_settings(variables).traces.headers) == {"x-mlflow-experiment-id", "x-mlflow-workspace"}
    assert set(resolve_settings(variables, experiment="e").traces.headers) == {"x-mlflow-workspace"}
    assert set(resolve_settings(variables, workspace="ws").traces.headers) == {"x-mlflow-experiment-id"}
    by_hand = resolve_settings(variables, experiment="e", headers={"X-MLflow-Experiment-Id": "7"}).traces.headers
    assert by_hand["x-mlflow-experiment-id"] == "7"


def test_resolve_key_in_query_is_used_and_not_shown() -> None:
    settings = resolve_settings(endpoint="http://c/v1/traces?key=planted")
    assert settings.traces.url.endswith("?key=planted")
    assert settings.api is None
    assert "planted" not in repr(settings) + repr(list(describe_settings(settings)))


EXPERIMENTS: list[tuple[dict[str, Any], dict[str, str], str | None, str | None]] = [
    ({}, {}, None, None),
    ({"experiment": "42"}, {}, "42", None),
    ({"experiment_id": 42}, {}, None, "42"),
    ({}, {"MLFLOW_EXPERIMENT_NAME": "a"}, "a", None),
    ({}, {"MLFLOW_EXPERIMENT_NAME": "a", "MLFLOW_EXPERIMENT_ID": "3"}, None, "3"),
    ({"experiment": "b"}, {"MLFLOW_EXPERIMENT_ID": "3"}, "b", None),
    ({"experiment_id": "4"}, {"MLFLOW_EXPERIMENT_NAME": "a"}, None, "4"),
]


@pytest.mark.parametrize(("arguments", "variables", "name", "number"), EXPERIMENTS)
def test_resolve_experiment_follows_precedence(
    arguments: dict[str, Any], variables: dict[str, str], name: str | None, number: str | None
) -> None:
    settings = resolve_settings(variables, **arguments)
    assert (settings.experiment, settings.experiment_id) == (name, number)


def test_resolve_variable_beats_default_of_caller() -> None:
    environment = {"HOME": "/nowhere"}
    defaults = {"create_experiment": True}
    assert resolve({}, environment=environment, defaults=defaults).create_experiment
    off = {**environment, "MLFLOW_OTLP_CREATE_EXPERIMENT": "false"}
    assert not resolve({}, environment=off, defaults=defaults).create_experiment


ERRORS: list[tuple[dict[str, Any], dict[str, str], list[str]]] = [
    ({"timeout": "abc"}, {}, ["argument timeout= is 'abc'", "seconds above 0"]),
    ({}, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "abc"}, ["environment variable MLFLOW_HTTP_REQUEST_TIMEOUT is 'abc'"]),
    ({}, {"MLFLOW_TRACKING_URI": "sqlite:///x.db"}, ["MLFLOW_TRACKING_URI is 'sqlite:///x.db'", "mlflow server"]),
    ({"tracking_uri": "databricks"}, {}, ["argument tracking_uri= is 'databricks'"]),
    ({"experiment": "a", "experiment_id": "1"}, {}, ["experiment= and experiment_id= are both set"]),
    ({"experimnt": "a"}, {}, ["unknown setting experimnt", "experiment_id"]),
    (
        {},
        {"MLFLOW_TRACKING_AUTH": "kubernetes-namespaced"},
        ["MLFLOW_TRACKING_TOKEN_FILE", "MLFLOW_WORKSPACE"],
    ),
    ({}, {"MLFLOW_TRACKING_AUTH": "my-plugin"}, ["'my-plugin'", "credentials="]),
    ({}, {"MLFLOW_TRACKING_AWS_SIGV4": "true"}, ["MLFLOW_TRACKING_AWS_SIGV4 is 'true'", "session="]),
    ({"certificate_file": "/nowhere"}, {}, ["argument certificate_file= is '/nowhere'", "No such file"]),
]


@pytest.mark.parametrize(("arguments", "variables", "parts"), ERRORS)
def test_resolve_error_names_source_value_and_expectation(
    arguments: dict[str, Any], variables: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        resolve_settings(variables, **arguments)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ({"headers": "planted-secret"}, {}),
        ({"headers": "Authorization: Bearer planted=="}, {}),
        ({"tracking_uri": "http://host?key=planted"}, {}),
        ({}, {BASE: "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "planted-secret"}),
        ({}, {"MLFLOW_TRACKING_TOKEN": "planted\x00-secret"}),
        ({"tracking_uri": "ftp://user:planted@host"}, {}),
        ({"tracking_uri": "http://user:planted@host:x"}, {}),
        ({"tracking_uri": "user:planted@host:5000"}, {}),
        ({"tracking_uri": "user:planted@host/mlflow"}, {}),
        ({"tracking_uri": "planted@host"}, {}),
        ({"tracking_uri": "http:/user:planted@host"}, {}),
        ({"tracking_uri": "http//user:planted@host"}, {}),
        ({"tracking_uri": "//user:planted@host"}, {}),
        ({"tracking_uri": "http://user:planted?x@host"}, {}),
        ({"tracking_uri": "http://user:planted#x@host"}, {}),
        ({"tracking_uri": "http://user:planted/x@host"}, {}),
        ({"tracking_uri": '"http://user:planted@host"'}, {}),
        ({"tracking_uri": "host?token=planted"}, {}),
        ({"tracking_uri": "postgresql://user:planted@host/db"}, {}),
        ({"tracking_uri": "Server=db;Password=planted"}, {}),
        ({"tracking_uri": "eyJhbGciOiJIUzI1NiJ9.planted"}, {}),
        ({"endpoint": "user:planted@c:4318"}, {}),
        ({"endpoint": "http://c:4318#token=planted"}, {}),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "user:planted@c:4318"}),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "user:planted@c/v1/traces?key=planted"}),
        ({}, {"MLFLOW_TRACKING_TOKEN_FILE": "Bearer planted"}),
        ({}, {"MLFLOW_TRACKING_TOKEN_FILE": "sha256~planted"}),
        ({}, {"MLFLOW_TRACKING_TOKEN_FILE": "planted0123456789abcdef"}),
        ({}, {"MLFLOW_TRACKING_CLIENT_CERT_PATH": "-----BEGIN PRIVATE KEY-----\nplanted"}),
        ({}, {BASE: "http://c", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "-----BEGIN PRIVATE KEY-----\nplanted"}),
        ({}, {"MLFLOW_TRACKING_AUTH": "Bearer planted"}),
        ({}, {"MLFLOW_TRACKING_AWS_SIGV4": "planted"}),
    ],
)
def test_resolve_error_shows_no_secret(arguments: dict[str, Any], variables: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        resolve_settings(variables, **arguments)
    assert "planted" not in str(raised.value)
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_resolve_auth_plugin_with_credential_is_ignored() -> None:
    variables = {"MLFLOW_TRACKING_AUTH": "kubernetes", "MLFLOW_TRACKING_TOKEN": "t"}
    assert resolve_settings(variables).traces.token == "t"
    assert resolve_settings({"MLFLOW_TRACKING_AUTH": "kubernetes"}, endpoint="http://c/x").traces.token is None


def test_resolve_credentials_file_completes_environment(tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    file = tmp_path / ".mlflow" / "credentials"
    file.write_text("[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = 100%planted\n")
    server = resolve_settings({"HOME": str(tmp_path)}).traces
    assert (server.username, server.password) == ("ada", "100%planted")
    assert server.sources["password"] == SettingSource("file", "~/.mlflow/credentials")
    assert resolve_settings({"HOME": str(tmp_path), "MLFLOW_TRACKING_USERNAME": "bob"}).traces.username == "bob"
    assert resolve_settings({"HOME": str(tmp_path)}, endpoint="http://c/x").traces.username is None
    file.write_text("planted without a section")
    with pytest.raises(ConfigurationError, match=r"~/\.mlflow/credentials") as raised:
        resolve_settings({"HOME": str(tmp_path)})
    assert "planted" not in str(raised.value)


def test_resolve_userinfo_of_url_becomes_credentials() -> None:
    settings = resolve_settings(tracking_uri="https://ada:pl%40nted@host/mlf")
    assert settings.traces.url == "https://host/mlf/v1/traces"
    with_variables = resolve_settings(
        {"MLFLOW_TRACKING_USERNAME": "bob", "MLFLOW_TRACKING_PASSWORD": "p"}, tracking_uri="https://ada:x@host"
    )
    assert with_variables.traces.username == "ada"
    assert (settings.traces.username, settings.traces.password) == ("ada", "pl@nted")
    assert "nted" not in repr(settings)


@pytest.mark.parametrize("userinfo", ["planted", "planted:", "planted:x-oauth-basic", "oauth2:planted", "ada:planted"])
def test_user_of_url_is_shown_nowhere(userinfo: str) -> None:
    for variable in ("MLFLOW_TRACKING_URI", BASE):
        server = resolve_settings({variable: f"https://{userinfo}@host"})
        shown = [repr(server), repr(list(describe_settings(server))), str(make_credential_source(server.traces))]
        assert "planted" not in "".join(shown)


def test_describe_settings_shows_no_secret() -> None:
    variables = {**SECRETS, "MLFLOW_TRACKING_URI": "http://m"}
    settings = resolve_settings(variables, headers={"x-key": "planted"}, credentials="planted")
    text = repr(settings) + repr(list(describe_settings(settings)))
    for secret in ("planted", "mlflow-token", "mlflow-password", "otlp-key"):
        assert secret not in text
    assert ("headers", "1, hidden", "argument headers=") in list(describe_settings(settings))
    assert ("token", "***", "environment variable MLFLOW_TRACKING_TOKEN") in list(describe_settings(settings))


def test_describe_settings_shows_every_setting() -> None:
    names = [name for name, _, _ in describe_settings(resolve_settings())]
    gateway = {setting.name for setting in SETTINGS if setting.model is GatewaySettings}  # in its command's --help
    expected = {setting.name for setting in SETTINGS} - gateway - {"endpoint", "tracking_uri"} | {"target", "mlflow"}
    assert set(names) == expected
    assert all(setting.description.endswith(".") for setting in SETTINGS)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without home directory, as in a container with an arbitrary user id."""

    def unknown(user_id: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user_id}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME")


@pytest.mark.usefixtures("homeless")
def test_resolve_without_home_directory_uses_the_other_settings() -> None:
    settings = resolve({"tracking_uri": "http://mlflow:5000"}, environment={})
    assert settings.traces.url == "http://mlflow:5000/v1/traces"
    assert list(candidate_roots(None, {})) == [Path(tempfile.gettempdir(), f"mlflow-otlp-exporter-{os.getuid()}")]


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_TOKEN_FILE", "MLFLOW_OTLP_SPOOL_DIR", "MLFLOW_TRACKING_SERVER_CERT_PATH"]
)
def test_resolve_path_below_missing_home_directory_names_the_setting(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is '~/x': expected a path without ~"):
        resolve({}, environment={name: "~/x"})
