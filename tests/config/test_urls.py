"""Addresses as people have them."""

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.config import urls as urls_module
from mlflow_otlp_exporter._internal.config.models import resolve
from mlflow_otlp_exporter._internal.config.source import SettingSource
from mlflow_otlp_exporter._internal.config.urls import (
    InvalidAddressError,
    base_endpoint,
    endpoint,
    parse_console_url,
    tracking_uri,
)

CONSOLE = "http://mlflow:5000/#/experiments/7/traces"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://m:5000", "http://m:5000"),
        ("http://m:5000/", "http://m:5000"),
        ("http://m:5000//", "http://m:5000"),
        ("http://m:5000/v1/traces", "http://m:5000"),
        ("http://m:5000/v1/traces/", "http://m:5000"),
        ("https://host/mlflow/", "https://host/mlflow"),
        ("https://host/mlflow/v1/traces/", "https://host/mlflow"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
        ("http://[fd00::1]/mlflow/v1/traces", "http://[fd00::1]/mlflow"),
        (CONSOLE, "http://mlflow:5000"),
        ("https://host/mlflow/#/experiments/7?searchFilter=", "https://host/mlflow"),
        ("https://host/mlflow/#/", "https://host/mlflow"),
        ("http://api:5000", "http://api:5000"),
        ("http://host/api", "http://host/api"),
    ],
)
def test_tracking_uri(given: str, expected: str) -> None:
    assert tracking_uri(given) == expected


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (
            "http://m:5000/api/2.0/mlflow/experiments/search",
            MessageCode.REST_PATH,
            "not that of a REST call: http://m:5000",
        ),
        ("https://host/mlf/ajax-api/3.0/mlflow", MessageCode.REST_PATH, "REST call: https://host/mlf"),
        ("http://m/api/2.0", MessageCode.REST_PATH, "REST call: http://m"),
        ("http://ada:planted@m:5000/api/2.0/x", MessageCode.REST_PATH, "REST call: http://m:5000"),
        ("https://dbc-1.cloud.databricks.com", MessageCode.DATABRICKS, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ("https://adb-1.1.azuredatabricks.net/", MessageCode.DATABRICKS, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ("databricks", MessageCode.DATABRICKS, "endpoint of its own"),
        ("sqlite:///x.db", MessageCode.NOT_A_SERVER, "mlflow server"),
        ("./mlruns", MessageCode.NOT_A_SERVER, "file store"),
        ("m:5000", MessageCode.INVALID_SETTING, "for example http://m:5000"),
        ("http://m:5000?x=1", MessageCode.INVALID_SETTING, "without '?'"),
        ("http://[::1", MessageCode.INVALID_SETTING, ""),
        ("unix:///run/mlflow.sock", MessageCode.INVALID_SETTING, "http://"),
    ],
)
def test_tracking_uri_that_cannot_be(given: str, code: MessageCode, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\[MLO-\d{3}\]$") as raised:
        resolve({}, environment={"MLFLOW_TRACKING_URI": given})
    assert raised.value.code is code
    assert said in str(raised.value)
    assert "planted" not in str(raised.value)


def test_endpoint_is_taken_as_it_is() -> None:
    assert endpoint("http://c:4318") == "http://c:4318"
    otel = "https://adb-1.azuredatabricks.net/api/2.0/otel/v1/traces"
    assert endpoint(otel) == otel


@pytest.mark.parametrize("given", [CONSOLE, "http://m/api/2.0/mlflow/traces"])
def test_endpoint_that_is_a_page_or_a_rest_call(given: str) -> None:
    with pytest.raises(InvalidAddressError) as raised:
        endpoint(given)
    assert raised.value.code is MessageCode.REST_PATH


@pytest.mark.parametrize("end", ["", "/", "/v1/traces", "/v1/traces/"])
def test_base_endpoint_gets_its_path_once(end: str) -> None:
    given = f"http://c:4318{end}"
    assert base_endpoint(given) == "http://c:4318/v1/traces"
    assert resolve({}, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": given}).traces.url == "http://c:4318/v1/traces"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (CONSOLE, {"experiment_id": "7"}),
        ("http://m/#/experiments/7", {"experiment_id": "7"}),
        ("http://m/#/experiments/7?compareRunsMode=TRACES", {"experiment_id": "7"}),
        ("http://m/#/experiments/7/traces?workspace=team-a&x=1", {"experiment_id": "7", "workspace": "team-a"}),
        ("http://m/#/workspaces/team-a/experiments/7/runs/abc", {"experiment_id": "7", "workspace": "team-a"}),
        ("http://m/#/experiments", {}),
        ("http://m/#/experiments/x7", {}),
        ("http://m/#/models/7", {}),
        ("http://m", {}),
    ],
)
def test_page_of_the_console(page: str, expected: dict[str, str]) -> None:
    assert parse_console_url(page) == expected


def test_experiment_of_a_page_counts_unless_another_is_set() -> None:
    from_page = SettingSource("variable", "MLFLOW_TRACKING_URI")
    found = resolve({}, environment={"MLFLOW_TRACKING_URI": CONSOLE})
    assert (found.experiment_id, found.sources["experiment_id"]) == ("7", from_page)
    for variable, expected in (("MLFLOW_EXPERIMENT_ID", (None, "9")), ("MLFLOW_EXPERIMENT_NAME", ("9", None))):
        found = resolve({}, environment={"MLFLOW_TRACKING_URI": CONSOLE, variable: "9"})
        assert (found.experiment, found.experiment_id) == expected
    found = resolve({"experiment": "agents"}, environment={"MLFLOW_TRACKING_URI": CONSOLE})
    assert (found.experiment, found.experiment_id) == ("agents", None)


def test_page_as_an_argument_beats_variables() -> None:
    environment = {"MLFLOW_EXPERIMENT_NAME": "agents", "MLFLOW_EXPERIMENT_ID": "9", "MLFLOW_WORKSPACE": "team-b"}
    found = resolve({"tracking_uri": f"{CONSOLE}?workspace=team-a"}, environment=environment)
    assert (found.experiment, found.experiment_id, found.workspace) == (None, "7", "team-a")
    assert found.sources["experiment_id"] == found.sources["workspace"] == SettingSource("argument", "tracking_uri")
    assert resolve({"tracking_uri": CONSOLE}, environment=environment).workspace == "team-b"


def test_workspace_of_a_page() -> None:
    found = resolve({"tracking_uri": f"{CONSOLE}?workspace=team-a"}, environment={})
    assert (found.workspace, found.sources["workspace"]) == ("team-a", SettingSource("argument", "tracking_uri"))


def test_parts() -> None:
    assert urls_module.path_prefix("http://h:1/mlf") == "/mlf"
    assert urls_module.without_path("http://[::1]:1/mlf") == "http://[::1]:1"
