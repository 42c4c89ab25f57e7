"""Where settings come from, which of them counts, and what is said about a wrong one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.config.describe import describe_settings
from mlflow_otlp_exporter._internal.config.models import Settings, resolve
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from mlflow_otlp_exporter._internal.config.setting import SettingGroup
from mlflow_otlp_exporter._internal.config.source import SettingSource

MLFLOW, OTLP = SettingGroup.MLFLOW, SettingGroup.OTLP
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def resolved(environment: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
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
def test_target_by_precedence(
    arguments: dict[str, str], variables: dict[str, str], endpoint: str, group: SettingGroup, api: str | None
) -> None:
    settings = resolved(variables, **arguments)
    assert (settings.traces.url, settings.traces.group) == (endpoint, group)
    assert (settings.api and settings.api.url) == api


def test_a_guessed_rest_side_is_known_to_be_one() -> None:
    assert not resolved(endpoint="http://c/v1/traces").api_certain
    assert resolved({"MLFLOW_TRACKING_URI": "http://m"}, endpoint="http://c/v1/traces").api_certain
    assert resolved(tracking_uri="http://m").api_certain


SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "mlflow-token",
    "MLFLOW_TRACKING_USERNAME": "mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=otlp-key",
}


def test_variables_of_one_group_do_not_reach_the_server_of_the_other() -> None:
    mlflow = resolved({**SECRETS, "MLFLOW_TRACKING_URI": "http://m"}).traces
    assert (mlflow.token, mlflow.password, dict(mlflow.headers)) == ("mlflow-token", "mlflow-password", {})
    assert mlflow.unused == ("OTEL_EXPORTER_OTLP_HEADERS",)
    otlp = resolved({**SECRETS, BASE: "http://c"}).traces
    assert (otlp.token, otlp.username, otlp.password) == (None, None, None)
    assert dict(otlp.headers) == {"authorization": "otlp-key"}
    assert set(otlp.unused) == set(SECRETS) - {"OTEL_EXPORTER_OTLP_HEADERS"}


def test_beside_a_collector_each_server_has_its_own_variables() -> None:
    settings = resolved({**SECRETS, TRACES: "http://c/x", "MLFLOW_TRACKING_URI": "http://m"})
    assert settings.traces.token is None
    assert settings.api is not None
    assert (settings.api.token, dict(settings.api.headers)) == ("mlflow-token", {})


def test_certificates_stay_with_their_group(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("x")
    variables = {
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH": str(file),
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(file),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(file),
    }
    mlflow = resolved(variables, tracking_uri="https://m").traces
    assert (mlflow.insecure_tls, mlflow.client_certificate_file, mlflow.certificate_file) == (True, str(file), None)
    otlp = resolved(variables, endpoint="https://c/x").traces
    assert (otlp.insecure_tls, otlp.client_certificate_file, otlp.certificate_file) == (False, None, str(file))
    assert otlp.client_key_file == str(file)


def test_arguments_count_always_and_are_merged_over_headers_of_the_same_group() -> None:
    settings = resolved({"OTEL_EXPORTER_OTLP_HEADERS": "a=1,b=2"}, endpoint="http://c/x", headers={"B": "3"})
    assert dict(settings.traces.headers) == {"a": "1", "b": "3"}
    settings = resolved({"OTEL_EXPORTER_OTLP_HEADERS": "a=1"}, tracking_uri="http://m", headers={"x": "y"})
    assert dict(settings.traces.headers) == {"x": "y"}


def test_what_is_no_secret_may_come_from_either_group_the_own_one_first() -> None:
    both = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7", "OTEL_EXPORTER_OTLP_TIMEOUT": "8"}
    assert resolved(both).timeout == 7
    assert resolved(both, endpoint="http://c").timeout == 8
    assert resolved({**both, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "9"}, endpoint="http://c").timeout == 9
    assert resolved({"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}).compression == "gzip"
    assert resolved(both, timeout=1).timeout == 1


def test_argument_beats_a_header_of_a_variable_that_says_the_same() -> None:
    variables = {"OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=1,x-mlflow-workspace=a", BASE: "http://c"}
    assert set(resolved(variables).traces.headers) == {"x-mlflow-experiment-id", "x-mlflow-workspace"}
    assert set(resolved(variables, experiment="e").traces.headers) == {"x-mlflow-workspace"}
    assert set(resolved(variables, workspace="ws").traces.headers) == {"x-mlflow-experiment-id"}
    by_hand = resolved(variables, experiment="e", headers={"X-MLflow-Experiment-Id": "7"}).traces.headers
    assert by_hand["x-mlflow-experiment-id"] == "7"


def test_key_in_a_query_is_used_but_not_shown() -> None:
    settings = resolved(endpoint="http://c/v1/traces?key=planted")
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
def test_experiment(arguments: dict[str, Any], variables: dict[str, str], name: str | None, number: str | None) -> None:
    settings = resolved(variables, **arguments)
    assert (settings.experiment, settings.experiment_id) == (name, number)


def test_defaults_of_the_caller_give_way_to_a_variable() -> None:
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
    ({"experiment": "a", "experiment_id": "1"}, {}, ["experiment= and experiment_id= are both given"]),
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
def test_error_names_source_value_and_expectation(
    arguments: dict[str, Any], variables: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        resolved(variables, **arguments)
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
    ],
)
def test_error_never_shows_a_secret(arguments: dict[str, Any], variables: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        resolved(variables, **arguments)
    assert "planted" not in str(raised.value)
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_plugin_of_the_sdk_does_not_matter_where_a_credential_is_given() -> None:
    variables = {"MLFLOW_TRACKING_AUTH": "kubernetes", "MLFLOW_TRACKING_TOKEN": "t"}
    assert resolved(variables).traces.token == "t"
    assert resolved({"MLFLOW_TRACKING_AUTH": "kubernetes"}, endpoint="http://c/x").traces.token is None


def test_credentials_file_fills_what_the_environment_lacks(tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    file = tmp_path / ".mlflow" / "credentials"
    file.write_text("[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = 100%planted\n")
    server = resolved({"HOME": str(tmp_path)}).traces
    assert (server.username, server.password) == ("ada", "100%planted")
    assert server.sources["password"] == SettingSource("file", "~/.mlflow/credentials")
    assert resolved({"HOME": str(tmp_path), "MLFLOW_TRACKING_USERNAME": "bob"}).traces.username == "bob"
    assert resolved({"HOME": str(tmp_path)}, endpoint="http://c/x").traces.username is None
    file.write_text("planted without a section")
    with pytest.raises(ConfigurationError, match=r"~/\.mlflow/credentials") as raised:
        resolved({"HOME": str(tmp_path)})
    assert "planted" not in str(raised.value)


def test_user_and_password_of_an_address_become_credentials_and_vanish_from_it() -> None:
    settings = resolved(tracking_uri="https://ada:pl%40nted@host/mlf")
    assert settings.traces.url == "https://host/mlf/v1/traces"
    with_variables = resolved(
        {"MLFLOW_TRACKING_USERNAME": "bob", "MLFLOW_TRACKING_PASSWORD": "p"}, tracking_uri="https://ada:x@host"
    )
    assert with_variables.traces.username == "ada"
    assert (settings.traces.username, settings.traces.password) == ("ada", "pl@nted")
    assert "nted" not in repr(settings)


def test_nothing_secret_is_shown() -> None:
    variables = {**SECRETS, "MLFLOW_TRACKING_URI": "http://m"}
    settings = resolved(variables, headers={"x-key": "planted"}, credentials="planted")
    text = repr(settings) + repr(list(describe_settings(settings)))
    for secret in ("planted", "mlflow-token", "mlflow-password", "otlp-key"):
        assert secret not in text
    assert ("headers", "1, hidden", "argument headers=") in list(describe_settings(settings))
    assert ("token", "***", "environment variable MLFLOW_TRACKING_TOKEN") in list(describe_settings(settings))


def test_every_setting_of_the_table_is_shown_and_has_help() -> None:
    names = [name for name, _, _ in describe_settings(resolved())]
    assert set(names) == {setting.name for setting in SETTINGS} - {"endpoint", "tracking_uri"} | {"target", "mlflow"}
    assert all(setting.help.endswith(".") for setting in SETTINGS)
