"""OpenTelemetry's own exporter over gRPC, in an environment of its own."""

import subprocess

from support.environments import environment, read_lock

_APP = """
import sys
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
metadata = tuple(pair.split("=") for pair in sys.argv[3:])
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(sys.argv[1], insecure=True, headers=metadata)))
provider.get_tracer("tests").start_span(sys.argv[2]).end()
provider.shutdown()
"""


def send_span_over_grpc(endpoint: str, name: str, *metadata: str) -> None:
    """Send one span; `metadata` are pairs such as "x-mlflow-workspace=team-a"."""
    python = environment("otlp-grpc", read_lock("otlp-grpc"))
    subprocess.run([str(python), "-c", _APP, endpoint, name, *metadata], check=True, timeout=120)
