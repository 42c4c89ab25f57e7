"""The manifests of examples/kubernetes and examples/gateway are valid for Kubernetes and for the exporter."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from mlflow_otlp_exporter._internal.cli.main import read_collector_config
from mlflow_otlp_exporter._internal.config.models import GatewaySettings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.schema import SETTINGS, fields_of
from mlflow_otlp_exporter._internal.gateway.tokens import TokenFile
from mlflow_otlp_exporter._internal.model.destination import Destination
from support.collector import REFERENCE

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


def load_gateway(name: str) -> dict[str, dict[str, Any]]:
    """The documents of a file of the gateway, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((GATEWAY / name).read_text())}


def read_gateway_settings(variables: dict[str, str]) -> GatewaySettings:
    return GatewaySettings(
        **{
            setting.name: setting.parse(variables[setting.variables[0]])
            if setting.variables[0] in variables
            else setting.default
            for setting in fields_of(GatewaySettings)
        }
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["gateway.yaml", "gateway-rbac.yaml", "collector-deployment.yaml"])
def test_gateway_manifests_are_valid(name: str, version: str) -> None:
    for document in load_gateway(name).values():
        kubernetes_validate.validate(document, version, strict=True)


def test_platform_manifests_name_their_namespaces() -> None:
    """They are applied without `--namespace`, because one file has resources of several namespaces."""
    documents = [
        *load_documents("collector-rbac.yaml"),
        *(item for path in GATEWAY.glob("*.yaml") for item in yaml.safe_load_all(path.read_text())),
    ]
    namespaces = {
        (document["kind"], document["metadata"].get("namespace")) for document in documents if "metadata" in document
    }
    assert {kind for kind, namespace in namespaces if namespace is None} == {"ClusterRole"}
    assert {kind for kind, namespace in namespaces if namespace == "team-a"} == {"RoleBinding"}
    assert {namespace for _, namespace in namespaces} == {None, "team-a", "observability"}


def test_gateway_manifests_references_match() -> None:
    service, secret, stateful_set = load_gateway("gateway.yaml").values()
    template = stateful_set["spec"]["template"]
    (container,) = template["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    gateway = read_gateway_settings(variables)
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
    rbac = load_gateway("gateway-rbac.yaml")
    account = rbac["ServiceAccount"]["metadata"]
    assert template["spec"]["serviceAccountName"] == account["name"]
    assert rbac["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", **account}]
    assert rbac["RoleBinding"]["roleRef"]["name"] == rbac["ClusterRole"]["metadata"]["name"]
    # It creates experiments, as the agent of agent.yaml does.
    assert rbac["ClusterRole"]["rules"] == find_document("Role", "agent.yaml")["rules"]
    policy = rbac["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == template["metadata"]["labels"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [
        [ports["otlp-grpc"], ports["otlp-http"]],
        [ports["otlp-http"]],
    ]
    monitor = yaml.safe_load((EXAMPLES.parent / "monitoring" / "servicemonitor.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
    assert monitor["spec"]["endpoints"][0]["port"] in ports


def merge(base: Any, patch: Any) -> Any:
    """Merge as `kubectl kustomize` does: null removes a key, and items of lists with the same name are merged."""
    if isinstance(base, dict):
        merged = {key: value for key, value in base.items() if patch.get(key, ...) is not None}
        merged |= {
            key: merge(base[key], value) if key in base else value for key, value in patch.items() if value is not None
        }
        return merged
    if isinstance(base, list):
        names = [item["name"] for item in base]
        items = [merge(item, next((other for other in patch if other["name"] == item["name"]), {})) for item in base]
        return items + [item for item in patch if item["name"] not in names]
    return patch


def test_kustomization_adds_the_certificate_of_the_service_and_removes_the_group() -> None:
    kustomization = yaml.safe_load((GATEWAY / "kustomization.yaml").read_text())
    documents: dict[str, Any] = {}
    for name in kustomization["resources"]:
        documents |= load_gateway(name)
    for patch in kustomization["patches"]:
        content = yaml.safe_load(patch["patch"])
        kind, base = content["kind"], documents[content["kind"]]
        assert [base["metadata"][key] == content["metadata"][key] for key in ("name", "namespace")] == [True, True]
        documents[kind] = merge(base, content)
        kubernetes_validate.validate(documents[kind], VERSIONS[0], strict=True)
    pod = documents["StatefulSet"]["spec"]["template"]["spec"]
    assert "fsGroup" not in pod["securityContext"]
    (container,) = pod["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"]}
    (path,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "certificate")
    assert variables["MLFLOW_OTLP_GATEWAY_CERTIFICATE_FILE"] == f"{path}/tls.crt"
    assert variables["MLFLOW_OTLP_GATEWAY_KEY_FILE"] == f"{path}/tls.key"
    assert set(variables) <= {name for setting in SETTINGS for name in setting.variables}
    (secret,) = documents["Service"]["metadata"]["annotations"].values()
    assert secrets["certificate"] == secret
    assert secrets["tokens"] == documents["Secret"]["metadata"]["name"]
    probes = (container["livenessProbe"], container["readinessProbe"])
    assert [probe["httpGet"]["scheme"] for probe in probes] == ["HTTPS", "HTTPS"]


def test_gateway_collector_manifest_matches_its_configuration() -> None:
    service, deployment = load_gateway("collector-deployment.yaml").values()
    text = read_collector_config("gateway")
    config = yaml.safe_load(text)
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    labels = template["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == ports
    protocols = config["receivers"]["otlp"]["protocols"].values()
    assert {int(protocol["endpoint"].rpartition(":")[2]) for protocol in protocols} == set(ports.values())
    health_port = int(config["extensions"]["health_check"]["endpoint"].rpartition(":")[2])
    assert container["livenessProbe"]["httpGet"]["port"] == health_port
    assert container["readinessProbe"]["httpGet"]["port"] == health_port
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables.keys() <= {reference["name"] for reference in REFERENCE.finditer(text)}
    gateways = load_gateway("gateway.yaml")["Service"]["metadata"]
    assert variables["GATEWAY_HOST"] == f"{gateways['name']}.{gateways['namespace']}.svc.cluster.local"
    # The commands in the page create the ConfigMap with this key.
    name = template["spec"]["volumes"][0]["configMap"]["name"]
    (mount,) = container["volumeMounts"]
    (argument,) = container["args"]
    file = argument.removeprefix(f"--config={mount['mountPath']}/")
    command = f"kubectl create configmap {name} --namespace observability --from-file={file}\n"
    assert f"mlflow-otlp collector-config gateway > {file}\n{command}" in (GATEWAY / "README.md").read_text()


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


def test_manifest_of_agent_with_gateway_fits_the_gateway(tmp_path: Path) -> None:
    secret, deployment = (find_document(kind, "agent-gateway.yaml") for kind in ("Secret", "Deployment"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    variables = {variable["name"]: variable.get("value", "team-a") for variable in container["env"]}
    settings = resolve({}, environment={**secret["stringData"], **variables, "HOME": str(tmp_path)})
    collector = load_gateway("collector-deployment.yaml")["Service"]
    port = next(port["port"] for port in collector["spec"]["ports"] if port["name"] == "otlp-http")
    host = f"{collector['metadata']['name']}.{collector['metadata']['namespace']}.svc"
    assert settings.traces.url == f"http://{host}:{port}/v1/traces"
    # The token of the secret may write to the destination of the agent.
    gateway = load_gateway("gateway.yaml")
    tokens = tmp_path / "tokens.json"
    tokens.write_text(gateway["Secret"]["stringData"]["tokens.json"])
    is_allowed = TokenFile(tokens).authenticate(settings.traces.headers["authorization"])
    assert is_allowed(Destination(settings.workspace, settings.experiment))
    assert settings.experiment == "support-agent"
    assert settings.disk.spool
    assert settings.disk.spool_dir == container["volumeMounts"][0]["mountPath"]
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    assert gateway["Service"]["metadata"]["name"] in (EXAMPLES / "agent-gateway.yaml").read_text()


def test_commented_lines_of_agent_with_gateway_mount_the_ca(tmp_path: Path) -> None:
    text = (EXAMPLES / "agent-gateway.yaml").read_text()
    code = re.sub(r"^( +)# (- name: |  \w+:|    \w+: )", r"\1\2", text, flags=re.MULTILINE)
    (deployment,) = [document for document in yaml.safe_load_all(code) if document["kind"] == "Deployment"]
    kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert variables["OTEL_EXPORTER_OTLP_CERTIFICATE"] == f"{folders['ca']}/service-ca.crt"
    assert {volume["name"] for volume in pod["volumes"]} == folders.keys()
    assert not pod["automountServiceAccountToken"]


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
