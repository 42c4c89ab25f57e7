"""The exporter's tests on the oldest and the newest OpenTelemetry, each in an environment of its own."""

import subprocess

import pytest

from support.environments import ROOT, environment, read_lock

OPENTELEMETRY = {
    "oldest": read_lock("opentelemetry-oldest"),
    # Not locked, so that an incompatible release of OpenTelemetry fails here first.
    "newest": [
        "opentelemetry-sdk",
        "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry-proto",
        "pytest>=8.3",
        "hypothesis>=6.100",
    ],
}
# Test files that need neither MLflow nor an instrumentation.
FILES = [
    "delivery/test_server_answers",
    "processing/test_trace_buffer",
    "setup/test_configure",
    "transport/test_client",
    "delivery/test_retry_sender",
    "config/test_credentials",
    "tracing/test_results",
    "tracing/test_traced",
    "delivery/test_otlp_client",
    "mlflow_api/test_experiments",
    "encoding/test_span_encoder",
    "delivery/test_exporter",
    "delivery/test_exporter_metrics",
    "delivery/test_batcher",
    "processing/test_processor",
    "transport/test_credential_provider",
    "common/test_problem_log",
    "transport/test_response",
    "common/test_work_queue",
    "config/test_resolver",
    "delivery/test_tenants",
    "setup/test_auto_instrumentation",
]


@pytest.mark.matrix
@pytest.mark.parametrize("label", sorted(OPENTELEMETRY))
def test_suite_with_other_opentelemetry_version_passes(label: str) -> None:
    python = environment(f"opentelemetry-{label}", OPENTELEMETRY[label], editable=ROOT)
    files = [f"tests/{name}.py" for name in FILES]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
