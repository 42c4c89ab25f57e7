"""The exporter's tests on the oldest and the newest OpenTelemetry, each in an environment of its own."""

import subprocess

import pytest

from support.environments import ROOT, environment

TESTS = ["pytest>=8.3", "hypothesis>=6.100", "opentelemetry-proto"]
OPENTELEMETRY = {
    "oldest": ["opentelemetry-sdk==1.30.0", "opentelemetry-exporter-otlp-proto-http==1.30.0"],
    "newest": ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"],
}
# Those that need neither MLflow nor an instrumentation.
FILES = [
    "test_answers",
    "test_blame",
    "test_buffer",
    "test_configure",
    "test_connection",
    "test_courier",
    "test_credentials",
    "test_decorator",
    "test_delivery",
    "test_destination",
    "test_encoder",
    "test_exporter",
    "test_metrics",
    "test_packing",
    "test_processor",
    "test_provider",
    "test_report",
    "test_response",
    "test_senders",
    "test_settings",
    "test_tenants",
    "test_zero_code",
]


@pytest.mark.matrix
@pytest.mark.parametrize("age", sorted(OPENTELEMETRY))
def test_opentelemetry(age: str) -> None:
    python = environment(f"opentelemetry-{age}", [*OPENTELEMETRY[age], *TESTS], editable=ROOT)
    files = [f"tests/{name}.py" for name in FILES]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
