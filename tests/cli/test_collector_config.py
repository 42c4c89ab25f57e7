"""`mlflow-otlp collector-config`: what it prints is YAML with the keys that the Collector's documents name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.cli.collector_config import CollectorConfig, as_resource, as_yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "collector"
TOKEN_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/token"

CONFIGS = {
    "least": CollectorConfig("http://mlflow:5000/v1/traces", experiment_id="1"),
    "kubernetes": CollectorConfig(
        "https://mlflow.ml.svc:8443/v1/traces", "7", "team-a", token_file=TOKEN_FILE, certificate_file="/ca.crt"
    ),
    "token": CollectorConfig("https://mlflow/v1/traces", "7", token_variable="MLFLOW_TRACKING_TOKEN"),
    "user": CollectorConfig("https://mlflow/v1/traces", "7", user_variables=("THE_USER", "THE_PASSWORD")),
    "old": CollectorConfig("https://mlflow/v1/traces", "7", compression="none", insecure_tls=True),
    "odd": CollectorConfig('https://mlflow/a$b"c/v1/traces', "7", "team-a", certificate_file="/with space/$ca: #.crt"),
    "tenants": CollectorConfig("https://mlflow/v1/traces", per_tenant=True),
    "tenants, with a token": CollectorConfig("https://mlflow/v1/traces", per_tenant=True, token_file=TOKEN_FILE),
    "tenants, with defaults": CollectorConfig("https://mlflow/v1/traces", "7", "team-a", per_tenant=True),
    "tenants, with a user": CollectorConfig("https://mlflow/v1/traces", per_tenant=True, user_variables=("U", "P")),
}

# What the README or config.go of each component names, with what stands below it; "" is one value, [] a list of them.
DOCUMENTED: dict[str, Any] = {
    "extensions": {
        "health_check": {"endpoint": ""},
        "file_storage": {"directory": "", "create_directory": "", "fsync": "", "compaction": {}},
        "bearertokenauth": {"filename": "", "token": "", "scheme": ""},
        "basicauth": {"client_auth": {"username": "", "password": ""}},
        "headers_setter": {
            "additional_auth": "",
            "headers": [{"action": "", "key": "", "value": "", "from_context": "", "default_value": ""}],
        },
    },
    "receivers": {
        "otlp": {
            "protocols": {
                "grpc": {"endpoint": "", "include_metadata": "", "max_recv_msg_size_mib": ""},
                "http": {"endpoint": "", "include_metadata": "", "max_request_body_size": ""},
            }
        }
    },
    "processors": {
        "memory_limiter": {"check_interval": "", "limit_percentage": "", "spike_limit_percentage": ""},
        "batch": {
            "timeout": "",
            "send_batch_size": "",
            "send_batch_max_size": "",
            "metadata_keys": [""],
            "metadata_cardinality_limit": "",
        },
    },
    "exporters": {
        "otlphttp": {
            "endpoint": "",
            "traces_endpoint": "",
            "compression": "",
            "timeout": "",
            "auth": {"authenticator": ""},
            "headers": {"x-mlflow-experiment-id": "", "x-mlflow-workspace": ""},
            "tls": {"ca_file": "", "insecure_skip_verify": ""},
            "retry_on_failure": {"enabled": "", "initial_interval": "", "max_interval": "", "max_elapsed_time": ""},
            "sending_queue": {"enabled": "", "storage": "", "queue_size": "", "num_consumers": ""},
        }
    },
    "service": {
        "extensions": [""],
        "pipelines": {"traces": {"receivers": [""], "processors": [""], "exporters": [""]}},
    },
}


def undocumented(found: Any, documented: Any, path: str = "") -> list[str]:
    """Where a configuration has what no component documents."""
    if isinstance(documented, dict):
        if not isinstance(found, dict):
            return [f"{path} is no mapping"]
        wrong: list[str] = []
        for key, value in found.items():
            name = key if key in documented else key.partition("/")[0]  # a component's type, before its name
            wrong += (
                [path + "." + key] if name not in documented else undocumented(value, documented[name], f"{path}.{key}")
            )
        return wrong
    if isinstance(documented, list):
        if not isinstance(found, list):
            return [f"{path} is no list"]
        return [each for item in found for each in undocumented(item, documented[0], f"{path}[]")]
    return [] if isinstance(found, str | int | bool) else [f"{path} is no single value"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_keys_are_documented_and_parts_fit_together(config: CollectorConfig) -> None:
    found = yaml.safe_load(as_yaml(config))
    assert undocumented(found, DOCUMENTED) == []
    service, pipeline = found["service"], found["service"]["pipelines"]["traces/mlflow"]
    assert list(service["pipelines"]) == ["traces/mlflow"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == set(found[kind])
    assert set(service["extensions"]) == set(found["extensions"])
    exporter = found["exporters"]["otlphttp/mlflow"]
    named = [exporter["sending_queue"]["storage"], exporter.get("auth", {}).get("authenticator")]
    named.append(found["extensions"].get("headers_setter/mlflow", {}).get("additional_auth"))
    assert {name for name in named if name} <= set(found["extensions"])
    assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
    assert exporter["compression"] == config.compression
    assert exporter["traces_endpoint"].replace("$$", "$") == config.traces_url


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_resource_holds_the_same(config: CollectorConfig) -> None:
    resource = yaml.safe_load(as_resource(config, name="a", namespace="b"))
    assert resource["metadata"] == {"name": "a", "namespace": "b"}
    assert resource["spec"]["config"] == yaml.safe_load(as_yaml(config))
    (volume,) = resource["spec"]["volumeMounts"]
    (claim,) = resource["spec"]["volumeClaimTemplates"]
    assert volume["name"] == claim["metadata"]["name"]
    assert volume["mountPath"] == resource["spec"]["config"]["extensions"]["file_storage/mlflow"]["directory"]
    variables = {each["name"] for each in resource["spec"].get("env", ())}
    assert variables == {*([config.token_variable] if config.token_variable else ()), *(config.user_variables or ())}


def test_a_tenant_that_names_no_experiment_is_refused_and_not_lost_in_silence() -> None:
    """MLflow answers 200 to an empty experiment header, and stores nothing (3.13 and newer)."""
    headers = yaml.safe_load(as_yaml(CONFIGS["tenants"]))["extensions"]["headers_setter/mlflow"]["headers"]
    assert {each["key"]: each.get("default_value") for each in headers} == {
        "x-mlflow-experiment-id": "none-was-given",
        "x-mlflow-workspace": None,
        "x-mlflow-run-id": None,
    }


def test_what_a_header_is_taken_from_survives_all_stages() -> None:
    found = yaml.safe_load(as_yaml(CONFIGS["tenants, with a token"]))
    kept = set(found["processors"]["batch/mlflow"]["metadata_keys"])
    assert {each["from_context"] for each in found["extensions"]["headers_setter/mlflow"]["headers"]} == kept
    assert all(protocol["include_metadata"] for protocol in found["receivers"]["otlp"]["protocols"].values())


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main_module.main(["collector-config", *words]) == 0
    return capsys.readouterr().out


def test_settings_of_the_environment_are_used_and_no_secret_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:planted@mlflow.example.com/mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    text = printed(capsys)
    found = yaml.safe_load(text)
    exporter = found["exporters"]["otlphttp/mlflow"]
    assert exporter["traces_endpoint"] == "https://mlflow.example.com/mlflow/v1/traces"
    assert exporter["headers"] == {"x-mlflow-experiment-id": "7", "x-mlflow-workspace": "team-a"}
    client = found["extensions"]["basicauth/mlflow"]["client_auth"]
    assert client["password"] == "${env:MLFLOW_TRACKING_PASSWORD}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    text += printed(capsys)
    assert "${env:MLFLOW_TRACKING_TOKEN}" in text
    assert "planted" not in text


def test_a_name_is_not_enough(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "support-agent")
    assert main_module.main(["collector-config"]) == 2
    assert "expected --experiment-id" in capsys.readouterr().err
    assert main_module.main(["collector-config", "--per-tenant"]) == 0


COMMANDS = [
    line.removeprefix("mlflow-otlp ").partition(" > ")[::2]
    for page in (EXAMPLES / "README.md", EXAMPLES.parent / "kubernetes" / "README.md")
    for line in page.read_text().replace("\\\n", "").splitlines()
    if line.startswith("mlflow-otlp collector-config") and " > " in line
]


@pytest.mark.parametrize(("command", "target"), COMMANDS, ids=[target for _, target in COMMANDS])
def test_examples_are_what_the_commands_print(command: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, *command.split()[1:]) == (EXAMPLES.parents[1] / target).read_text()


def test_all_examples_are_made_by_a_command() -> None:
    assert {Path(target).name for _, target in COMMANDS} >= {path.name for path in EXAMPLES.glob("*.yaml")}
