"""Vendors' SDKs: configure() with a vendor's tracer provider, and the vendor code in docs/migration.md."""

import os
import subprocess

import pytest

from support.documents import blocks
from support.environments import ROOT, environment, read_lock
from support.scripted_server import ACCEPTED, ScriptedServer

PATH = "/vendor/v1/traces"
VENDORS = {
    "arize-phoenix-otel": """
from phoenix.otel import register
register(endpoint=VENDOR, protocol="http/protobuf", batch=False, verbose=False)
""",
    "logfire": """
import logfire
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
processor = SimpleSpanProcessor(OTLPSpanExporter(endpoint=VENDOR))
logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[processor])
""",
    "traceloop-sdk": """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from traceloop.sdk import Traceloop
Traceloop.init(app_name="bot", exporter=OTLPSpanExporter(endpoint=VENDOR), disable_batch=True, instruments=set())
""",
}
APP = """
import sys
VENDOR, OURS = sys.argv[1:]
{vendor}
from opentelemetry import trace
from mlflow_otlp_exporter import configure, trace_context, traced

telemetry = configure(tracking_uri=OURS, experiment_id=1, auto_instrument=False)

@traced(kind="AGENT")
def answer(question):
    with trace.get_tracer("app").start_as_current_span("plan"):
        return question

with trace_context(session="s-1"):
    answer("rain?")
result = telemetry.flush()
assert result.delivered == 2, result
assert configure(tracking_uri=OURS, experiment_id=1, auto_instrument=False) is telemetry
"""


MIGRATION_IMPORTS = {"arize-phoenix-otel": "from phoenix.otel import", "traceloop-sdk": "from traceloop.sdk import"}


def create_python(vendor: str) -> str:
    """Create an environment with a vendor's SDK and return its Python."""
    return str(environment(f"vendor-{vendor}", read_lock(vendor), editable=ROOT))


@pytest.mark.matrix
@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_configure_after_vendor_sdk_sends_spans_to_both(scripted_server: ScriptedServer, vendor: str) -> None:
    scripted_server.answer(ACCEPTED, path=PATH)
    app = APP.format(vendor=VENDORS[vendor])
    command = [create_python(vendor), "-c", app, scripted_server.url + PATH, scripted_server.url]
    variables = {**os.environ, "TRACELOOP_TELEMETRY": "false", "PYTHONPATH": ""}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    for path in (PATH, "/v1/traces"):
        names = {span.name for request in scripted_server.to(path) for span in request.spans()}
        assert {"answer", "plan"} <= names, path


@pytest.mark.matrix
@pytest.mark.parametrize("vendor", sorted(MIGRATION_IMPORTS))
def test_migration_page_vendor_code_sends_spans(scripted_server: ScriptedServer, vendor: str) -> None:
    (code,) = [
        block.code
        for block in blocks(ROOT / "docs" / "migration.md", "python")
        if MIGRATION_IMPORTS[vendor] in block.code
    ]
    variables = {
        **os.environ,
        # Phoenix uses HTTP if this variable is an HTTP endpoint, but takes the port from PHOENIX_GRPC_PORT.
        "PHOENIX_COLLECTOR_ENDPOINT": f"{scripted_server.url}/v1/traces",
        "PHOENIX_GRPC_PORT": scripted_server.url.rpartition(":")[2],
        "TRACELOOP_BASE_URL": scripted_server.url,
        "TRACELOOP_METRICS_ENABLED": "false",
        "TRACELOOP_TELEMETRY": "false",
        "PYTHONPATH": "",
    }
    command = [create_python(vendor), "-c", f"{code}\nanswer('rain?')"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    names = {span.name for request in scripted_server.to("/v1/traces") for span in request.spans()}
    assert [name for name in names if name.startswith("answer")]
