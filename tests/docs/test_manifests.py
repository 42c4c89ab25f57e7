"""The manifests of examples/kubernetes are valid for Kubernetes and for the exporter."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from mlflow_otlp_exporter._internal.cli.main import read_collector_config
from mlflow_otlp_exporter._internal.config.models import GatewaySettings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.schema import SETTINGS, fields_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "kubernetes"
GATEWAY = EXAMPLES.parent / "gateway"
FILES = sorted(EXAMPLES.glob("*.yaml"))
# Kubernetes 1.29 is the version of OpenShift 4.16; 1.33 is a recent one.
VERSIONS = ("1.29", "1.33")


def load_documents(*names: str) -> list[dict[str, Any]]:
    return [document for name in names for document in yaml.safe_load_all((EXAMPLES / name).read_text())]


def find_document(kind: str, *names: str) -> dict[str, Any]:
    (match,) = [document for document in load_documents(*names) if document["kind"] == kind]
    return match


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_manifest_against_kubernetes_schema_is_valid(path: Path, version: str) -> None:
    for document in load_documents(path.name):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_gateway_manifest_is_valid_and_its_references_match(version: str) -> None:
    documents = list(yaml.safe_load_all((GATEWAY / "gateway.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    service, secret, stateful_set = documents
    template = stateful_set["spec"]["template"]
    (container,) = template["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    gateway = GatewaySettings(
        **{
            setting.name: setting.parse(variables[setting.variables[0]])
            if setting.variables[0] in variables
            else setting.default
            for setting in fields_of(GatewaySettings)
        }
    )
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == ports
    assert gateway.gateway_listen == f"0.0.0.0:{ports['otlp-http']}"
    assert gateway.gateway_grpc_listen == f"0.0.0.0:{ports['otlp-grpc']}"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (token_file,) = secret["stringData"]
    assert gateway.gateway_tokens_file == f"{mounts['tokens']}/{token_file}"
    assert variables["MLFLOW_OTLP_SPOOL_DIR"].startswith(f"{mounts['spool']}/")
    assert set(variables) <= {name for setting in SETTINGS for name in setting.variables}
    assert stateful_set["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert template["spec"]["volumes"][0]["secret"]["secretName"] == secret["metadata"]["name"]


def test_manifest_with_unknown_field_is_rejected() -> None:
    wrong = find_document("Deployment", "agent.yaml")
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_examples_readme_links_every_manifest() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in FILES if f"]({path.name})" not in page] == []


def test_agent_manifests_references_match() -> None:
    account, role = find_document("ServiceAccount", "agent.yaml"), find_document("Role", "agent.yaml")
    binding, deployment = find_document("RoleBinding", "agent.yaml"), find_document("Deployment", "agent.yaml")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    template = deployment["spec"]["template"]
    assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]} <= volumes


def test_agent_manifest_variables_resolve_to_settings(tmp_path: Path) -> None:
    container = find_document("Deployment", "agent.yaml")["spec"]["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    (tmp_path / "token").write_text("planted")
    (tmp_path / "namespace").write_text("team-a")
    settings = resolve({}, environment={**variables, "HOME": "/", "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": str(tmp_path)})
    assert settings.traces.token_file == str(tmp_path / "token")
    assert settings.namespace == "team-a"
    assert settings.experiment == "support-agent"
    assert settings.disk.spool_dir == container["volumeMounts"][0]["mountPath"]


def test_collector_manifests_references_match() -> None:
    # Kubernetes' schemas lack the Collector resource, so tests/cli/test_collector_configs.py checks it.
    resource = yaml.safe_load(read_collector_config("operator"))
    account = find_document("ServiceAccount", "collector-rbac.yaml")
    role, binding = (
        find_document("ClusterRole", "collector-rbac.yaml"),
        find_document("RoleBinding", "collector-rbac.yaml"),
    )
    assert resource["spec"]["serviceAccount"] == account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    ports = {
        port["port"] for port in find_document("NetworkPolicy", "collector-rbac.yaml")["spec"]["ingress"][0]["ports"]
    }
    protocols = resource["spec"]["config"]["receivers"]["otlp"]["protocols"].values()
    assert ports == {int(protocol["endpoint"].rpartition(":")[2]) for protocol in protocols}
