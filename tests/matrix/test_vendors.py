"""Another vendor's SDK: a tracer provider that it made first, and what docs/migration.md says was before."""

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
    with trace.get_tracer("app").start_as_current_span("inner"):
        return question

with trace_context(session="s-1"):
    answer("rain?")
result = telemetry.flush()
assert result.delivered == 2, result
assert configure(tracking_uri=OURS, experiment_id=1, auto_instrument=False) is telemetry
"""


BEFORE = {"arize-phoenix-otel": "from phoenix.otel import", "traceloop-sdk": "from traceloop.sdk import"}


def python_with(vendor: str) -> str:
    """The Python of an environment with a vendor's SDK."""
    return str(environment(f"vendor-{vendor}", read_lock(vendor), editable=ROOT))


@pytest.mark.matrix
@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_configure_after_vendor_sdk_sends_spans_to_both(scripted_server: ScriptedServer, vendor: str) -> None:
    scripted_server.answer(ACCEPTED, path=PATH)
    app = APP.format(vendor=VENDORS[vendor])
    command = [python_with(vendor), "-c", app, scripted_server.url + PATH, scripted_server.url]
    variables = {**os.environ, "TRACELOOP_TELEMETRY": "false", "PYTHONPATH": ""}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for path in (PATH, "/v1/traces"):
        names = {span.name for request in scripted_server.to(path) for span in request.spans()}
        assert {"answer", "inner"} <= names, path


@pytest.mark.matrix
@pytest.mark.parametrize("vendor", sorted(BEFORE))
def test_migration_page_vendor_code_sends_spans(scripted_server: ScriptedServer, vendor: str) -> None:
    (code,) = [block.code for block in blocks(ROOT / "docs" / "migration.md", "python") if BEFORE[vendor] in block.code]
    variables = {
        **os.environ,
        # An HTTP endpoint in the variable makes it speak HTTP, but to the port that this one names.
        "PHOENIX_COLLECTOR_ENDPOINT": f"{scripted_server.url}/v1/traces",
        "PHOENIX_GRPC_PORT": scripted_server.url.rpartition(":")[2],
        "TRACELOOP_BASE_URL": scripted_server.url,
        "TRACELOOP_METRICS_ENABLED": "false",
        "TRACELOOP_TELEMETRY": "false",
        "PYTHONPATH": "",
    }
    command = [python_with(vendor), "-c", f"{code}\nanswer('rain?')"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names = {span.name for request in scripted_server.to("/v1/traces") for span in request.spans()}
    assert [name for name in names if name.startswith("answer")]
