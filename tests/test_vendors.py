"""A tracer provider that another vendor's SDK made first: both get the spans."""

import os
import subprocess

import pytest

from support.environments import ROOT, environment
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


@pytest.mark.matrix
@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_both_get_the_spans(scripted_server: ScriptedServer, vendor: str) -> None:
    known = ROOT / "tests" / "apps" / f"{vendor.partition('-')[0]}.txt"
    # traceloop-sdk needs httpx without saying so.
    more = ["httpx", "-c", str(known)] if known.exists() else []
    python = environment(f"vendor-{vendor}", [vendor, *more], editable=ROOT)
    scripted_server.answer(ACCEPTED, path=PATH)
    command = [str(python), "-c", APP.format(vendor=VENDORS[vendor]), scripted_server.url + PATH, scripted_server.url]
    variables = {**os.environ, "TRACELOOP_TELEMETRY": "false", "PYTHONPATH": ""}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for path in (PATH, "/v1/traces"):
        names = {span.name for request in scripted_server.to(path) for span in request.spans()}
        assert {"answer", "inner"} <= names, path
