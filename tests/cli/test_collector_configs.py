"""`mlflow-otlp collector-config`: the parts of the shipped files fit together.

tests/integration/test_collector.py runs the files.
"""

import re
from typing import Any

import pytest
import yaml

from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.cli.main import COLLECTOR_CONFIGS, read_collector_config
from support.collector import REFERENCE, expand_variables
from support.environments import ROOT

VARIABLES = {
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com/mlflow",
    "MLFLOW_EXPERIMENT_ID": "7",
    "MLFLOW_WORKSPACE": "team-a",
    "MLFLOW_TRACKING_TOKEN": "planted-token",
    "MLFLOW_TRACKING_TOKEN_FILE": "/etc/otelcol/token",
    "MLFLOW_TRACKING_USERNAME": "ada",
    "MLFLOW_TRACKING_PASSWORD": "planted-password",
    "MLFLOW_TRACKING_SERVER_CERT_PATH": "/etc/otelcol/ca.crt",
    "MLFLOW_TRACKING_INSECURE_TLS": "true",
}
CREDENTIALS = {
    "fixed": "bearertokenauth/mlflow",
    "fixed-basic-auth": "basicauth/mlflow",
    "fixed-no-auth": None,
    "per-tenant": "bearertokenauth/mlflow",
    "operator": "bearertokenauth/mlflow",
    "sidecar": "bearertokenauth/mlflow",
}
FIXED = ("fixed", "fixed-basic-auth", "fixed-no-auth", "sidecar")
PER_TENANT = ("per-tenant", "operator")
TO_MLFLOW = [*FIXED, *PER_TENANT]


def load_config(name: str, **variables: str) -> dict[str, Any]:
    """The Collector's part of a shipped file, with the values of variables."""
    document: dict[str, Any] = yaml.safe_load(expand_variables(read_collector_config(name), variables))
    config: dict[str, Any] = document["spec"]["config"] if name == "operator" else document
    return config


def exporter_of(config: dict[str, Any]) -> dict[str, Any]:
    exporter: dict[str, Any] = config["exporters"]["otlp_http/mlflow"]
    return exporter


def test_configs_are_the_shipped_files() -> None:
    folder = ROOT / "src" / "mlflow_otlp_exporter" / "_internal" / "cli" / "collector_configs"
    assert {path.stem for path in folder.iterdir()} == set(COLLECTOR_CONFIGS) == {*TO_MLFLOW, "gateway"}


@pytest.mark.parametrize("name", COLLECTOR_CONFIGS)
def test_collector_config_prints_the_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_module.main(["collector-config", name]) == 0
    assert capsys.readouterr().out == read_collector_config(name)


def test_collector_config_without_name_prints_fixed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_module.main(["collector-config"]) == 0
    assert capsys.readouterr().out == read_collector_config("fixed")


def test_collector_config_unknown_name_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main_module.main(["collector-config", "unknown"])
    message = capsys.readouterr().err
    assert all(name in message for name in COLLECTOR_CONFIGS)


def test_collector_config_help_describes_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main_module.main(["collector-config", "--help"])
    message = capsys.readouterr().out
    assert all(f"{name}: {summary}\n" in message for name, summary in COLLECTOR_CONFIGS.items())


@pytest.mark.parametrize("name", TO_MLFLOW)
def test_parts_of_a_file_fit_together(name: str) -> None:
    config = load_config(name, **VARIABLES)
    service, pipeline = config["service"], config["service"]["pipelines"]["traces/mlflow"]
    assert list(service["pipelines"]) == ["traces/mlflow"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == set(config[kind])
    assert set(service["extensions"]) == set(config["extensions"])
    assert len(service["extensions"]) == len(config["extensions"])
    exporter = exporter_of(config)
    credential = CREDENTIALS[name]
    setter = config["extensions"].get("headers_setter/mlflow")
    if name in PER_TENANT:
        assert setter["additional_auth"] == credential
        # An extension comes after those that it names.
        assert service["extensions"].index(credential) < service["extensions"].index("headers_setter/mlflow")
        assert exporter["auth"] == {"authenticator": "headers_setter/mlflow"}
        assert "headers" not in exporter
    else:
        assert setter is None
        assert exporter.get("auth") == ({"authenticator": credential} if credential else None)
    credentials = {extension for extension in config["extensions"] if extension.partition("/")[0].endswith("auth")}
    assert credentials == ({credential} if credential else set())
    assert exporter["sending_queue"]["storage"] in config["extensions"]
    assert exporter["sending_queue"]["num_consumers"] == 1
    assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
    assert exporter["compression"] == "gzip"
    batch = config["processors"]["batch/mlflow"] if name in PER_TENANT else exporter["sending_queue"]["batch"]
    assert "200ms" in (batch.get("timeout"), batch.get("flush_timeout"))


@pytest.mark.parametrize("name", TO_MLFLOW)
def test_variables_are_settings_and_are_described_in_the_file(name: str) -> None:
    text = read_collector_config(name)
    comments, _, _ = text.partition("extensions:\n")
    described = set(re.findall(r"MLFLOW_\w+", "\n".join(re.findall("^#.*", comments, re.MULTILINE))))
    references = {reference["name"] for reference in REFERENCE.finditer(text)}
    assert references == described
    assert references <= set(VARIABLES)
    settings = (ROOT / "docs" / "configuration.md").read_text()
    assert [variable for variable in references if f"`{variable}`" not in settings] == []
    # The Collector reads every other dollar sign as the start of a reference.
    assert "$" not in REFERENCE.sub("", text)


@pytest.mark.parametrize("name", TO_MLFLOW)
def test_required_variables_have_no_default(name: str) -> None:
    """The Collector refuses an empty address at its start."""
    defaults = {
        reference["name"]: reference["default"] for reference in REFERENCE.finditer(read_collector_config(name))
    }
    assert {variable for variable, default in defaults.items() if default is None} == {
        "MLFLOW_TRACKING_URI",
        *(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD") if name == "fixed-basic-auth" else ()),
    }


@pytest.mark.parametrize("name", TO_MLFLOW)
def test_variables_become_values_of_the_exporter(name: str) -> None:
    config = load_config(name, **VARIABLES)
    exporter = exporter_of(config)
    assert exporter["endpoint"] == "https://mlflow.example.com/mlflow"
    assert exporter["tls"] == {"ca_file": "/etc/otelcol/ca.crt", "insecure_skip_verify": True}
    if name in FIXED:
        assert exporter["headers"] == {"x-mlflow-experiment-id": "7", "x-mlflow-workspace": "team-a"}
    credential = CREDENTIALS[name]
    if credential == "basicauth/mlflow":
        client = config["extensions"][credential]["client_auth"]
        assert client == {"username": "ada", "password": "planted-password"}
    elif credential:
        assert config["extensions"][credential] == {"filename": "/etc/otelcol/token", "token": "planted-token"}


@pytest.mark.parametrize("name", TO_MLFLOW)
def test_unset_optional_variables_verify_with_the_systems_certificates(name: str) -> None:
    exporter = exporter_of(load_config(name, MLFLOW_TRACKING_URI="https://mlflow.example.com"))
    assert exporter["tls"] == {"ca_file": "", "insecure_skip_verify": False}


@pytest.mark.parametrize("name", FIXED)
def test_unset_experiment_is_rejected_and_not_silently_dropped(name: str) -> None:
    """MLflow 3.13 and newer answer 200 to an empty experiment header and store nothing."""
    headers = exporter_of(load_config(name))["headers"]
    assert headers == {"x-mlflow-experiment-id": "none-was-given", "x-mlflow-workspace": ""}


@pytest.mark.parametrize("name", PER_TENANT)
def test_tenant_without_experiment_is_rejected_and_not_silently_dropped(name: str) -> None:
    """MLflow 3.13 and newer answer 200 to an empty experiment header and store nothing."""
    headers = load_config(name)["extensions"]["headers_setter/mlflow"]["headers"]
    assert {header["key"]: header.get("default_value") for header in headers} == {
        "x-mlflow-experiment-id": "none-was-given",
        "x-mlflow-workspace": None,
        "x-mlflow-run-id": None,
    }


@pytest.mark.parametrize("name", PER_TENANT)
def test_headers_of_tenants_pass_receivers_and_batches(name: str) -> None:
    config = load_config(name)
    keys = set(config["processors"]["batch/mlflow"]["metadata_keys"])
    headers = config["extensions"]["headers_setter/mlflow"]["headers"]
    assert {header["from_context"] for header in headers} == keys
    assert {header["key"] for header in headers} == keys
    assert all(protocol["include_metadata"] for protocol in config["receivers"]["otlp"]["protocols"].values())


def drop_credential(config: dict[str, Any]) -> dict[str, Any]:
    credential = next((name for name in config["extensions"] if name.partition("/")[0].endswith("auth")), None)
    if credential:
        del config["extensions"][credential]
        del exporter_of(config)["auth"]
        config["service"]["extensions"].remove(credential)
    return config


@pytest.mark.parametrize("name", ["fixed", "fixed-basic-auth"])
def test_fixed_configs_differ_only_in_the_credential(name: str) -> None:
    assert drop_credential(load_config(name)) == load_config("fixed-no-auth")


def test_per_tenant_differs_from_fixed_only_in_tenant_settings() -> None:
    fixed, tenants = load_config("fixed"), load_config("per-tenant")
    for protocol in tenants["receivers"]["otlp"]["protocols"].values():
        del protocol["include_metadata"]
    # Its batches are made in front of the queue.
    del tenants["processors"]["batch/mlflow"], exporter_of(fixed)["sending_queue"]["batch"]
    del exporter_of(tenants)["auth"], exporter_of(fixed)["auth"], exporter_of(fixed)["headers"]
    for part in ("receivers", "processors", "exporters"):
        assert tenants[part] == fixed[part]


def test_sidecar_differs_from_fixed_only_in_its_addresses() -> None:
    lines = [
        read_collector_config(name).partition("extensions:\n")[2].replace(address, "ADDRESS:431")
        for name, address in (("fixed", "0.0.0.0:431"), ("sidecar", "localhost:431"))
    ]
    assert lines[0] == lines[1]
    assert lines[0].count("ADDRESS:431") == 2


def test_gateway_passes_whole_traces_with_their_destination_to_one_replica_without_a_queue() -> None:
    config = load_config("gateway", GATEWAY_HOST="gateway.example.com")
    exporter = config["exporters"]["load_balancing/mlflow"]
    assert exporter["routing_key"] == "traceID"
    assert exporter["resolver"] == {"dns": {"hostname": "gateway.example.com", "port": "4317"}}
    protocol = exporter["protocol"]["otlp"]
    assert protocol["auth"]["authenticator"] in config["service"]["extensions"]
    assert protocol["tls"] == {"insecure": False, "ca_file": "", "server_name_override": "gateway.example.com"}
    # Retries choose among the gateways again, and an attempt ends before them.
    assert exporter["timeout"] > protocol["timeout"]
    assert (exporter["retry_on_failure"]["enabled"], protocol["retry_on_failure"]["enabled"]) == (True, False)
    # The client gets the answer of the gateway.
    assert not protocol["sending_queue"]["enabled"]
    assert "sending_queue" not in exporter
    headers = config["extensions"]["headers_setter/mlflow"]["headers"]
    assert {header["key"]: header.get("from_context") for header in headers} == {
        "authorization": "authorization",
        **{f"x-mlflow-{key}": f"x-mlflow-{key}" for key in ("workspace", "experiment-id", "experiment", "run-id")},
    }
    assert all(protocol["include_metadata"] for protocol in config["receivers"]["otlp"]["protocols"].values())


def test_operator_resource_contains_the_per_tenant_file() -> None:
    def lines_of(text: str) -> str:
        return text.partition("extensions:\n")[2]

    indented = "".join(f"    {line}\n" for line in lines_of(read_collector_config("per-tenant")).splitlines())
    assert lines_of(read_collector_config("operator")) == indented


def test_operator_resource_keeps_the_queue_in_its_volume() -> None:
    resource = yaml.safe_load(read_collector_config("operator"))
    (volume,) = resource["spec"]["volumeMounts"]
    (claim,) = resource["spec"]["volumeClaimTemplates"]
    assert volume["name"] == claim["metadata"]["name"]
    assert volume["mountPath"] == resource["spec"]["config"]["extensions"]["file_storage/mlflow"]["directory"]
    # The file of the queue is up to 1.4 times as large as its spans.
    queue = exporter_of(resource["spec"]["config"])["sending_queue"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert (queue["sizer"], queue["queue_size"]) == ("bytes", 2**30)


def test_operator_resource_sets_the_variables_of_its_configuration() -> None:
    text = read_collector_config("operator")
    variables = {variable["name"] for variable in yaml.safe_load(text)["spec"]["env"]}
    assert variables == {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_TOKEN_FILE",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
    }
    assert variables <= {reference["name"] for reference in REFERENCE.finditer(text)}
    # The alternative, a token in a Secret, is a comment that becomes valid when the marks are removed.
    alternative = text.replace("    # - name:", "    - name:").replace("    #   ", "      ")
    (token,) = [item for item in yaml.safe_load(alternative)["spec"]["env"] if item["name"] == "MLFLOW_TRACKING_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "mlflow-credentials", "key": "MLFLOW_TRACKING_TOKEN"}}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def test_documents_name_shipped_files() -> None:
    commands = [
        command
        for path in DOCUMENTS
        for command in re.findall("^ *mlflow-otlp collector-config.*", path.read_text(), re.MULTILINE)
    ]
    assert len(commands) >= 4
    for command in commands:
        words = command.partition(" > ")[0].split()
        assert len(words) == 3, command
        assert words[2] in COLLECTOR_CONFIGS, command


def test_readme_of_the_example_links_each_file() -> None:
    page = ROOT / "examples" / "collector" / "README.md"
    links = dict(re.findall(r"^\| \[`([a-z-]+)`\]\((.*?)\) \|", page.read_text(), re.MULTILINE))
    assert {name: (page.parent / link).read_text() for name, link in links.items()} == {
        name: read_collector_config(name) for name in COLLECTOR_CONFIGS
    }
