"""Fenced blocks of the documents: code runs and passes mypy, and commands exist."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import shutdown
from mlflow_otlp_exporter._internal.cli import main
from mlflow_otlp_exporter._internal.cli.main import read_collector_config
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS
from mlflow_otlp_exporter.testing import RecordingEndpoint
from support.collector import REFERENCE
from support.documents import DOCS, FRAMEWORK_PAGES, PAGES, Block, blocks, commands, exported_variables
from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.settings_page import TYPES

LANGUAGES = {"python", "javascript", "sh", "console", "text", "toml", "yaml", "ini"}
SHELL = [block for page in PAGES for block in blocks(page, "sh", "console")]
# tests/matrix/test_frameworks.py runs the pages of frameworks, and checks their types.
PYTHON = [page for page in PAGES if page not in FRAMEWORK_PAGES and blocks(page, "python")]
# The migration page names these packages, which are not installed here.
VENDORS = {"phoenix", "traceloop"}
# Programs of other projects: this module does not check their arguments.
FOREIGN = {
    "curl",
    "eval",
    "git",
    "kubectl",
    "mlflow",
    "npm",
    "opentelemetry-instrument",
    "printf",
    "otelcol-contrib",
    "pytest",
    "REQUIRE_ALL=1",
    "sed",
}
KUBERNETES = ("1.29", "1.33")
# Python requires this import at the start of a module, wherever a page shows it.
FUTURE = "from __future__ import annotations\n"
# Accepted mypy errors: code before and after a migration defines the same names, and packages that are not installed
# have no types, and neither have their decorators.
EXPECTED = re.compile(
    r"note: |\[no-redef\]"
    rf"|module named \"({'|'.join(sorted(VENDORS))})\b.*\[import-not-found\]"
    r"|page_docs_(migration|workers).*\[untyped-decorator\]"
)


def format_label(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


@pytest.fixture(autouse=True)
def shut_down_telemetry() -> Iterator[None]:
    yield
    shutdown()
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def test_blocks_have_supported_languages() -> None:
    assert [format_label(block) for page in PAGES for block in blocks(page) if block.language not in LANGUAGES] == []


def test_text_blocks_contain_no_code() -> None:
    texts = [block for page in PAGES for block in blocks(page, "text")]
    assert [
        format_label(block) for block in texts if re.search(r"^(import|from|def|export) ", block.code, re.MULTILINE)
    ] == []


# Python


def run_blocks(page: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.is_run:
            exec(compile(block.code, format_label(block), "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("page", [page for page in PYTHON if page in DOCS], ids=lambda page: page.name)
def test_python_blocks_of_page_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with RecordingEndpoint() as endpoint:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", endpoint.url)
        run_blocks(page)
        shutdown()


def test_getting_started_python_blocks_store_traces(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "getting-started.md"
    first, second = blocks(page, "python")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(first.code, format_label(first), "exec", dont_inherit=True), names)
    reply, flush_result, url = capsys.readouterr().out.splitlines()
    assert reply == "Take an umbrella."
    assert f"\n{flush_result}\n" in page.read_text()
    record = mlflow_server.wait_for_trace(url.partition("tr-")[2][:32])
    assert record["trace_info"]["state"] == "OK"
    assert record["trace_info"]["trace_metadata"]["mlflow.trace.session"] == "s-1"
    # The server has no workspaces, so the second block runs against an endpoint that accepts them.
    with RecordingEndpoint() as endpoint:
        telemetry = names["configure"](tracking_uri=endpoint.url, experiment="first-steps")
        exec(compile(second.code, format_label(second), "exec", dont_inherit=True), names)
        telemetry.flush()
        assert {span.workspace for trace in endpoint.traces for span in trace.spans} == {"team-b"}
        shutdown()


def test_python_blocks_pass_mypy(tmp_path: Path) -> None:
    for page in PYTHON:
        code = "\n\n".join(block.code for block in blocks(page, "python"))
        name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
        (tmp_path / f"page_{name}.py").write_text(FUTURE * (FUTURE in code) + code.replace(FUTURE, ""))
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    done = subprocess.run(
        [*command, *map(str, tmp_path.glob("*.py"))], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if not EXPECTED.search(line)] == []


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_blocks_import_existing_modules(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.code)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.partition(".")[0] in VENDORS or importlib.util.find_spec(name), format_label(block)


def test_skipped_python_blocks_are_in_migration_page_only() -> None:
    left_out = [block for page in PYTHON for block in blocks(page, "python") if not block.is_run]
    assert len(left_out) == 6
    assert {block.page.name for block in left_out} == {"migration.md"}


# Commands


@pytest.mark.parametrize("block", SHELL, ids=format_label)
def test_shell_block_commands_exist(block: Block) -> None:
    for words in commands(block):
        program, *arguments = words
        if program == "mlflow-otlp":
            main.create_parser().parse_args(arguments)
        elif program == "make":
            goals = [word for word in arguments if "=" not in word]
            assert [goal for goal in goals if f"\n{goal}:" not in (ROOT / "Makefile").read_text()] == [], words
        elif program in ("python", ".venv/bin/python"):
            assert (
                arguments[:2] in (["-m", "pip"], ["-m", "twine"])
                or arguments[0] == "app.py"
                or (ROOT / arguments[0]).exists()
            ), words
        elif program == "pip":
            assert arguments[0] == "install"
            extra_groups = {
                extra for word in arguments for extra in re.findall(r"^mlflow-otlp-exporter\[(.*)\]$", word)
            }
            extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
            assert {extra for group in extra_groups for extra in group.split(",")} <= extras
        elif program == "export":
            variables = {name for setting in SETTINGS for name in setting.variables}
            others = {
                "OTEL_TRACES_EXPORTER",
                "OTEL_METRICS_EXPORTER",
                "OTEL_LOGS_EXPORTER",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            }
            names = {word.partition("=")[0] for word in arguments}
            if (
                block.page in FRAMEWORK_PAGES
            ):  # tests/matrix/test_frameworks.py runs them with the framework's variables
                names = {name for name in names if name.startswith("MLFLOW_")}
            assert names <= variables | others
        else:
            assert program in FOREIGN, words


FILE_VARIABLES = {
    variable
    for setting in SETTINGS
    for variable in setting.variables
    if TYPES.get(setting.parse) == "file" or setting.name == "spool_dir"
}


def resolve_settings(variables: dict[str, str], folder: Path) -> Settings:
    """Resolve the settings of variables, and create a file for each variable that names one."""
    variables_with_files = dict(variables)
    for name in FILE_VARIABLES & variables.keys():
        file = folder / Path(variables[name]).name
        if name != "MLFLOW_OTLP_SPOOL_DIR":
            file.write_text("planted")
        variables_with_files[name] = str(file)
    variables_with_files["MLFLOW_OTLP_SERVICE_ACCOUNT_DIR"] = "none"
    return resolve({}, environment={**variables_with_files, "HOME": str(folder)}, defaults=DEFAULTS)


@pytest.mark.parametrize("block", [block for block in SHELL if exported_variables(block)], ids=format_label)
def test_shell_block_variables_resolve_to_settings(block: Block, tmp_path: Path) -> None:
    resolve_settings(exported_variables(block), tmp_path)


# Topologies: URL, kind of credential, experiment, workspace, whether the spool is used, whether names are looked up.
TOPOLOGIES = {
    "A plain server": ("http://mlflow.example.com:5000/v1/traces", "none", "support-agent", None, True, True),
    "A plain server, 2": ("https://mlflow.example.com/v1/traces", "user", "support-agent", None, True, True),
    "Behind a proxy, under a prefix": (
        "https://ml.example.com/mlflow/v1/traces", "file", "support-agent", None, True, True
    ),
    "In a pod": (
        "https://mlflow.redhat-ods-applications.svc:8443/v1/traces", "none", "support-agent", None, True, True
    ),
    "To a gateway or Collector in the cluster": (
        "https://mlflow-otlp-gateway.observability.svc:4318/v1/traces", "none", "support-agent", "team-a", False, False
    ),
    "From outside the cluster": (
        "https://mlflow.apps.example.com/v1/traces", "file", "support-agent", "team-a", True, True
    ),
    "Through a central Collector": (
        "http://collector.observability.svc:4318/v1/traces", "none", "7", "team-a", False, False
    ),
    "A Collector as a sidecar": ("http://localhost:4318/v1/traces", "none", "7", None, False, False),
    "Serverless functions": ("https://mlflow.example.com/v1/traces", "token", None, None, True, True),
}  # fmt: skip


def read_topologies() -> dict[str, dict[str, str]]:
    """Read the variables of each section; the key of a section's second block ends with `, 2`."""
    environments: dict[str, dict[str, str]] = {}
    for page in (ROOT / "docs" / f"{name}.md" for name in ("topologies", "kubernetes", "serverless")):
        lines = enumerate(page.read_text().splitlines(), 1)
        headings = [(number, line.lstrip("# ")) for number, line in lines if line.startswith(("# ", "## "))]
        for block in blocks(page, "sh"):
            if variables := exported_variables(block):
                name = [title for number, title in headings if number < block.line][-1]
                environments[name if name not in environments else f"{name}, 2"] = variables
    return environments


def test_topologies_page_sections_are_all_tested() -> None:
    assert read_topologies().keys() == TOPOLOGIES.keys()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topology_variables_resolve_to_described_settings(name: str, tmp_path: Path) -> None:
    settings = resolve_settings(read_topologies()[name], tmp_path)
    server = settings.traces
    credentials = {"file": server.token_file, "user": server.username, "token": server.token}
    credential = next((kind for kind, value in credentials.items() if value), "none")
    experiment = settings.experiment or settings.experiment_id
    actual = (server.url, credential, experiment, settings.workspace, settings.disk.spool, settings.is_api_certain)
    assert actual == TOPOLOGIES[name]


# Other languages


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "yaml")], ids=format_label)
def test_yaml_block_against_its_schema_is_valid(block: Block) -> None:
    for document in yaml.safe_load_all(block.code):
        if "apiVersion" in document:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)
        elif "scrape_configs" in document:
            assert block.page.name == "monitoring.md"  # tests/docs/test_monitoring.py checks it
        else:
            # A configuration file of OpenTelemetry: tests/cli/test_run.py runs an app with it.
            assert document["file_format"] == "1.0"
            assert block.page.name == "zero-code.md"


def test_sidecar_manifest_matches_its_configuration_and_commands() -> None:
    page = ROOT / "docs" / "topologies.md"
    (block,) = blocks(page, "yaml")
    pod = yaml.safe_load(block.code)["spec"]
    ((sidecar,), (app,)) = pod["initContainers"], pod["containers"]
    assert {item["name"]: item["value"] for item in app["env"]} == read_topologies()["A Collector as a sidecar"]
    # The variables, ports and folders of the configuration.
    text = read_collector_config("sidecar")
    config = yaml.safe_load(text)
    variables = {item["name"] for item in sidecar["env"]}
    assert variables <= {reference["name"] for reference in REFERENCE.finditer(text)}
    assert variables >= {"MLFLOW_TRACKING_URI", "MLFLOW_WORKSPACE", "MLFLOW_TRACKING_SERVER_CERT_PATH"}
    port = sidecar["startupProbe"]["httpGet"]["port"]
    assert config["extensions"]["health_check"]["endpoint"].endswith(f":{port}")
    mounts = {mount["name"]: mount["mountPath"] for mount in sidecar["volumeMounts"]}
    assert config["extensions"]["file_storage/mlflow"]["directory"].startswith(f"{mounts['queue']}/")
    # The commands create the ConfigMap that is mounted, and its key is the name of the file.
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    words = next(
        words for block in blocks(page, "sh") for words in commands(block) if words[1:3] == ["create", "configmap"]
    )
    assert words[3] == volumes["config"]["configMap"]["name"]
    (file,) = [word.partition("=")[2] for word in words if word.startswith("--from-file=")]
    assert sidecar["args"] == [f"--config={mounts['config']}/{file}"]
    agent = list(yaml.safe_load_all((ROOT / "examples" / "kubernetes" / "agent.yaml").read_text()))
    assert pod["serviceAccountName"] in {item["metadata"]["name"] for item in agent if item["kind"] == "ServiceAccount"}


def test_getting_started_shell_blocks_with_server_succeed(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    page = ROOT / "docs" / "getting-started.md"
    server_blocks = [block for block in blocks(page, "sh") if block.code.startswith("mlflow-otlp")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow_server.uri}
    output = ""
    for block in server_blocks:
        command = ["sh", "-euc", block.code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), block.code
        output += done.stdout
    assert len(server_blocks) == 2
    assert "It works." in output


@pytest.mark.needs("curl")
def test_workspace_of_a_local_server_takes_a_trace(workspace_server: MLflowServer, tmp_path: Path) -> None:
    start, use = (block.code for block in blocks(ROOT / "docs" / "experiments.md", "sh"))
    assert "--enable-workspaces" in start
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The fixture's server has another port, and tests of other modules may have created team-a.
    code = use.replace("http://localhost:5000", workspace_server.uri).replace("team-a", "team-on-the-page")
    done = subprocess.run(
        ["sh", "-euc", code],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert workspace_server.experiment("support-agent", "team-on-the-page") is not None
