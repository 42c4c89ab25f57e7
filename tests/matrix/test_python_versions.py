"""The exporter's tests on the oldest Python, and on newer versions than the one that runs the suite."""

import subprocess

import pytest

from support.environments import ROOT, environment, read_lock
from support.needs import executable

PYTHONS = ["python3.10", "python3.12", "python3.13"]
# Test files that depend on language features and need neither MLflow nor an instrumentation.
FILES = [
    "processing/test_trace_buffer",
    "setup/test_configure",
    "tracing/test_context",
    "config/test_credentials",
    "tracing/test_results",
    "tracing/test_traced",
    "encoding/test_span_encoder",
    "delivery/test_exporter",
    "common/test_bounded",
    "privacy/test_mask",
    "config/test_resolver",
    "spool/test_file_format",
    "delivery/test_tenants",
    "setup/test_auto_instrumentation",
]


@pytest.mark.matrix
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs(name)) for name in PYTHONS])
def test_suite_with_other_python_version_passes(name: str) -> None:
    python = environment(name, read_lock("pythons"), editable=ROOT, base=executable(name))
    files = [f"tests/{name}.py" for name in FILES]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
