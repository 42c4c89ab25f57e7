"""The exporter's tests on the oldest Python, and on newer ones than most of the suite runs with."""

import subprocess

import pytest

from support.environments import ROOT, environment
from support.needs import executable

REQUIREMENTS = ["pytest>=8.3", "hypothesis>=6.100", "opentelemetry-proto", "openinference-instrumentation", "pydantic"]
PYTHONS = ["python3.10", "python3.12", "python3.13"]
# Those that depend on the language most, and need neither MLflow nor an instrumentation.
FILES = [
    "test_buffer",
    "test_configure",
    "test_context",
    "test_credentials",
    "test_decorator",
    "test_encoder",
    "test_exporter",
    "test_json",
    "test_mask",
    "test_settings",
    "test_spool_file",
    "test_tenants",
    "test_zero_code",
]


@pytest.mark.matrix
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs(name)) for name in PYTHONS])
def test_python(name: str) -> None:
    python = environment(name, REQUIREMENTS, editable=ROOT, base=executable(name))
    files = [f"tests/{each}.py" for each in FILES]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
