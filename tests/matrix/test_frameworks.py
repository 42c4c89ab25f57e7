"""The pages in docs/frameworks: their code runs with the real frameworks, and MLflow shows what the pages say."""

import os
import re
import shlex
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.corpus import run_module
from support.documents import FRAMEWORKS, blocks, exported_variables
from support.environments import ROOT, environment, read_lock
from support.framework_traces import ENVIRONMENTS
from support.gateway import GatewayProcess
from support.mlflow_server import MLflowServer
from support.needs import executable
from support.openai_stub import OpenAIStub
from support.polyglot import install_vercel_ai

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.needs("node"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the newest releases of the frameworks need Python 3.11"),
]

RUN_SECONDS, MYPY_SECONDS = 180, 500
INSTRUMENTATION = "openinference-instrumentation-"
# Accepted mypy errors: DSPy has no types, and Haystack exports this function without saying so.
UNTYPED = re.compile(
    r'Skipping analyzing "dspy"|"haystack.tracing" does not explicitly export attribute "enable_tracing"'
)


@pytest.fixture(scope="module")
def stub() -> Iterator[OpenAIStub]:
    server = OpenAIStub()
    yield server
    server.stop()


def python(group: str) -> str:
    return str(environment(group, read_lock(group)))


@contextmanager
def refusing_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that refuses every request: yield its address, and the list of requests."""
    requests: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            requests.append(self.rfile.readline().decode(errors="replace").strip())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
        server.shutdown()
        thread.join()


def instrumentations(page: Path) -> str:
    """Return what the page's `pip install` installs, because the environment has the instrumentations of all pages."""
    words = shlex.split(blocks(page, "sh")[0].code.splitlines()[0])
    extras = [extra for word in words for extra in re.findall(r"^mlflow-otlp-exporter\[(.+)\]$", word)]
    packages = [word.removeprefix(INSTRUMENTATION) for word in words if word.startswith(INSTRUMENTATION)]
    return ",".join([*extras, *packages]) or "false"


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in ENVIRONMENTS.items() for name in names])
def test_framework_page_code_stores_the_trace_in_the_page(
    group: str, name: str, stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    page = FRAMEWORKS / f"{name}.md"
    (code,), (expected,) = blocks(page, "python"), blocks(page, "text")
    (tmp_path / "app.py").write_text(code.code)
    with refusing_proxy() as (proxy, requests):
        variables = {
            **{name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")},
            **exported_variables(blocks(page, "sh")[0]),
            "HTTP_PROXY": proxy,
            "HTTPS_PROXY": proxy,
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT / "src"),
            "MLFLOW_TRACKING_URI": mlflow_server.uri,
            "MLFLOW_OTLP_AUTO_INSTRUMENT": instrumentations(page),
            "OPENAI_BASE_URL": stub.url,
            "OPENAI_API_BASE": stub.url,  # LlamaIndex
            "OPENAI_API_KEY": "none",
            "GOOGLE_GEMINI_BASE_URL": stub.url.removesuffix("/v1"),
            "GOOGLE_API_KEY": "none",
        }
        completed = subprocess.run(
            [python(group), "app.py"],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    assert completed.returncode == 0, completed.stderr
    assert requests == [], "the framework connects to its vendor"
    traces = run_module("support.framework_traces", "--tracking-uri", mlflow_server.uri, name)[name]
    assert traces == [expected.code]


@pytest.mark.needs("npm")
def test_vercel_ai_page_code_stores_the_trace_in_the_page(
    stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    page = FRAMEWORKS / "vercel-ai.md"
    (code,), (expected,) = blocks(page, "javascript"), blocks(page, "text")
    (tmp_path / "app.mjs").write_text(code.code)
    (tmp_path / "node_modules").symlink_to(install_vercel_ai() / "node_modules")
    with GatewayProcess(tmp_path / "gateway", mlflow_server.uri) as gateway:
        variables = {
            **os.environ,
            **exported_variables(blocks(page, "sh")[1]),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{gateway.port}",
            "OPENAI_BASE_URL": stub.url,
            "OPENAI_API_KEY": "none",
        }
        command = [str(executable("node")), "app.mjs"]
        subprocess.run(command, cwd=tmp_path, env=variables, timeout=RUN_SECONDS, check=True)
        assert gateway.stop() == 0
    traces = run_module("support.framework_traces", "--tracking-uri", mlflow_server.uri, "vercel-ai")["vercel-ai"]
    assert traces == [expected.code]


@pytest.mark.parametrize(("group", "names"), ENVIRONMENTS.items(), ids=ENVIRONMENTS)
def test_framework_pages_pass_mypy(group: str, names: Sequence[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / f"page_{name.replace('-', '_')}.py").write_text(blocks(FRAMEWORKS / f"{name}.md", "python")[0].code)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    command += ["--python-executable", python(group), "--cache-dir", str(tmp_path / "cache")]
    completed = subprocess.run(
        [*command, *map(str, tmp_path.glob("*.py"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MYPY_SECONDS,
        check=False,
    )
    assert completed.stderr == ""
    # The environment lacks types for the sources of this library, which `make lint` checks.
    errors = [line for line in completed.stdout.splitlines() if line.startswith(str(tmp_path)) and "note: " not in line]
    assert [error for error in errors if not UNTYPED.search(error)] == []
