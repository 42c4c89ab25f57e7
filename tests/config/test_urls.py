"""Parsing of URLs."""

from collections.abc import Callable

import pytest
import requests
from urllib3.util import parse_url

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.config import urls as urls_module
from mlflow_otlp_exporter._internal.config.models import SettingSource
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.service_account import is_cluster_service
from mlflow_otlp_exporter._internal.config.urls import (
    InvalidAddressError,
    parse_base_endpoint,
    parse_console_url,
    parse_endpoint,
    parse_tracking_uri,
    split_userinfo,
)

HOST, CHARACTERS = "expected a host name", "without spaces, backslashes and control characters"
PORT = "expected http://host:port"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        # The HTTP client would connect to evil.com, which the token of *.svc must not reach.
        (r"https://evil.com\.svc", CHARACTERS),
        (r"https://evil.com\@mlflow.svc", CHARACTERS),
        ("https://evil.com\n.svc", CHARACTERS),
        ("https://evil.com\t.svc", CHARACTERS),
        ("https://evil.com .svc", CHARACTERS),
        ("https://evil.com\uff0f.svc", CHARACTERS),  # a solidus of full width
        ("https://evil.com\ud800.svc", CHARACTERS),
        ("https://[evil.com.svc", CHARACTERS),
        ("https://evil.com%2f.svc", HOST),
        ("https://evil.com;.svc", HOST),
        ("https://planted@evil.com@mlflow.svc", HOST),
        ("https://[::1]evil.com.svc", "expected"),  # newer versions of Python reject it themselves
        ("https://evil.com%E3%80%82svc", HOST),
        ("https://evil.com\u3002svc", HOST),  # dots that IDNA replaces by "."
        ("https://evil.com\uff0esvc", HOST),
        ("https://evil.com\uff61svc", HOST),
        ("https://mlflow.team.\uff53vc", HOST),  # letters that look like others, or become others
        ("https://m\u043bflow.team.svc", HOST),
        ("https://\u212aiwi.svc", HOST),
        ("https://mlflow\u200b.svc", CHARACTERS),
        ("https://mlflow\u00ad.svc", CHARACTERS),
        ("https://evil.com..svc", HOST),
        ("https://.svc", HOST),
        ("https://mlflow.svc..", HOST),
        (f"https://{'a' * 64}.svc", HOST),
        ("https://mlflow.svc:\uff14\uff14\uff13", "expected"),
        ("https://mlflow.svc:443:80", PORT),
        ("https://mlflow.svc:-1", PORT),
        ("https://:443", PORT),
        ("https://evil.com<.svc", HOST),
        ("https://evil.com|.svc", HOST),
        ("https://evil.com,mlflow.svc", HOST),
    ],
)
@pytest.mark.parametrize("parse", [parse_tracking_uri, parse_endpoint, parse_base_endpoint])
def test_parse_url_that_two_parsers_read_differently_raises(
    parse: Callable[[str], str], url: str, message: str
) -> None:
    with pytest.raises(InvalidAddressError, match=message) as raised:
        parse(url)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    "host", ["mlflow_1.svc", "[fe80::1%25eth0]:5000", "xn--bcher-kva.example", "mlflow.svc.", "u%40x:p@mlflow:5000"]
)
def test_parse_url_with_unusual_host_keeps_it(host: str) -> None:
    assert parse_tracking_uri(f"https://{host}/x/") == f"https://{host}/x"


@pytest.mark.parametrize(
    "url",
    [
        *("https://evil.com/.svc", "https://mlflow.svc.evil.com", "https://mlflow.svc@evil.com", "https://svc"),
        *(
            "https://mlflow.svc:x@evil.com",
            "https://evil.com#.svc",
            "https://evil.com/#/x.svc",
            "https://evil.com:443/.svc",
        ),
        *(
            "https://xn--evil-.com",
            "https://mlflow.svc-evil.com",
            "https://mlflowsvc",
            "https://[::1]/.svc",
            "https://1.1/.svc",
        ),
        *("https://MLFLOW.team.SVC", "https://mlflow.team.svc:8443/x", "https://mlflow.team.svc.cluster.local."),
    ],
)
def test_parse_url_names_the_host_that_the_http_client_connects_to(url: str) -> None:
    request_url = requests.Request("POST", split_userinfo(parse_tracking_uri(url))[0] + "/v1/traces").prepare().url
    connects_to_service = (
        (parse_url(str(request_url)).host or "").lower().rstrip(".").endswith((".svc", ".cluster.local"))
    )
    assert is_cluster_service(parse_tracking_uri(url)) is connects_to_service
    assert connects_to_service is ("evil" not in url and ".svc" in url.lower().partition("/.svc")[0])


CONSOLE = "http://mlflow:5000/#/experiments/7/traces"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://m:5000", "http://m:5000"),
        ("http://m:5000/", "http://m:5000"),
        ("http://m:5000//", "http://m:5000"),
        ("http://m:5000/v1/traces", "http://m:5000"),
        ("http://m:5000/v1/traces/", "http://m:5000"),
        ("http://m:5000/v1/traces/v1/traces", "http://m:5000"),
        ("http://m:5000/v1/traces//v1/traces/", "http://m:5000"),
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
def test_parse_tracking_uri_normalizes(text: str, expected: str) -> None:
    assert parse_tracking_uri(text) == expected


@pytest.mark.parametrize(
    ("text", "code", "message"),
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
        ("m:5000", MessageCode.SCHEME_MISSING, "for example http://m:5000"),
        ("localhost", MessageCode.SCHEME_MISSING, "for example http://localhost"),
        ("localhost:5000/", MessageCode.SCHEME_MISSING, "for example http://localhost:5000/"),
        ("mlflow.example.com", MessageCode.SCHEME_MISSING, "for example http://mlflow.example.com"),
        ("10.0.0.1/mlflow", MessageCode.SCHEME_MISSING, "for example http://10.0.0.1/mlflow"),
        ("[::1]:5000", MessageCode.SCHEME_MISSING, "for example http://[::1]:5000"),
        ("ada:planted@m:5000", MessageCode.SCHEME_MISSING, "for example http://***@m:5000"),
        ("ada:planted@m/x", MessageCode.SCHEME_MISSING, "for example http://***@m/x"),
        ("mlruns", MessageCode.NOT_A_SERVER, "file store"),
        ("data/mlruns", MessageCode.NOT_A_SERVER, "file store"),
        ("C:/mlruns", MessageCode.NOT_A_SERVER, "file store"),
        ("file:///tmp/mlruns", MessageCode.NOT_A_SERVER, "file store"),
        ("http:/m:5000", MessageCode.INVALID_SETTING, "http://host:port"),
        ("http://m:5000?x=1", MessageCode.INVALID_SETTING, "without '?'"),
        ("http://[::1", MessageCode.INVALID_SETTING, ""),
        ("unix:///run/mlflow.sock", MessageCode.INVALID_SETTING, "http://"),
    ],
)
def test_parse_tracking_uri_invalid_raises_with_code(text: str, code: MessageCode, message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\[MLO-\d{3}\]$") as raised:
        resolve({}, environment={"MLFLOW_TRACKING_URI": text})
    assert raised.value.code is code
    assert message in str(raised.value)
    assert "planted" not in str(raised.value)


def test_parse_endpoint_keeps_path() -> None:
    assert parse_endpoint("http://c:4318") == "http://c:4318"
    assert parse_endpoint("http://c:4318/v1/traces/v1/traces") == "http://c:4318/v1/traces"
    otel = "https://adb-1.azuredatabricks.net/api/2.0/otel/v1/traces"
    assert parse_endpoint(otel) == otel


@pytest.mark.parametrize("text", [CONSOLE, "http://m/api/2.0/mlflow/traces"])
def test_parse_endpoint_page_or_rest_call_raises(text: str) -> None:
    with pytest.raises(InvalidAddressError) as raised:
        parse_endpoint(text)
    assert raised.value.code is MessageCode.REST_PATH


@pytest.mark.parametrize(
    "end", ["", "/", "/v1/traces", "/v1/traces/", "/v1/traces/v1/traces", "/v1/traces//v1/traces/"]
)
def test_parse_base_endpoint_appends_path_once(end: str) -> None:
    text = f"http://c:4318{end}"
    assert parse_base_endpoint(text) == "http://c:4318/v1/traces"
    assert resolve({}, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": text}).traces.url == "http://c:4318/v1/traces"


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
def test_parse_console_url_returns_destination(page: str, expected: dict[str, str]) -> None:
    assert parse_console_url(page) == expected


def test_resolve_experiment_of_console_url_is_weaker_than_settings() -> None:
    from_page = SettingSource("variable", "MLFLOW_TRACKING_URI")
    settings = resolve({}, environment={"MLFLOW_TRACKING_URI": CONSOLE})
    assert (settings.experiment_id, settings.sources["experiment_id"]) == ("7", from_page)
    for variable, expected in (("MLFLOW_EXPERIMENT_ID", (None, "9")), ("MLFLOW_EXPERIMENT_NAME", ("9", None))):
        settings = resolve({}, environment={"MLFLOW_TRACKING_URI": CONSOLE, variable: "9"})
        assert (settings.experiment, settings.experiment_id) == expected
    settings = resolve({"experiment": "agents"}, environment={"MLFLOW_TRACKING_URI": CONSOLE})
    assert (settings.experiment, settings.experiment_id) == ("agents", None)


def test_resolve_console_url_argument_beats_variables() -> None:
    environment = {"MLFLOW_EXPERIMENT_NAME": "agents", "MLFLOW_EXPERIMENT_ID": "9", "MLFLOW_WORKSPACE": "team-b"}
    settings = resolve({"tracking_uri": f"{CONSOLE}?workspace=team-a"}, environment=environment)
    assert (settings.experiment, settings.experiment_id, settings.workspace) == (None, "7", "team-a")
    assert (
        settings.sources["experiment_id"] == settings.sources["workspace"] == SettingSource("argument", "tracking_uri")
    )
    assert resolve({"tracking_uri": CONSOLE}, environment=environment).workspace == "team-b"


def test_resolve_workspace_of_console_url() -> None:
    settings = resolve({"tracking_uri": f"{CONSOLE}?workspace=team-a"}, environment={})
    assert (settings.workspace, settings.sources["workspace"]) == ("team-a", SettingSource("argument", "tracking_uri"))


def test_path_prefix_and_without_path_split_url() -> None:
    assert urls_module.path_prefix("http://h:1/mlf") == "/mlf"
    assert urls_module.without_path("http://[::1]:1/mlf") == "http://[::1]:1"
