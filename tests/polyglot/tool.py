"""The tool's service, with OpenTelemetry's own exporter. Arguments: OTLP endpoint, experiment id."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

endpoint, experiment = sys.argv[1:]
exporter = OTLPSpanExporter(f"{endpoint}/v1/traces", headers={"x-mlflow-experiment-id": experiment})
provider = TracerProvider(resource=Resource({"service.name": "tool-python"}))
provider.add_span_processor(BatchSpanProcessor(exporter))
tracer = provider.get_tracer("tool")


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        arguments = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with tracer.start_as_current_span("get_weather", extract(dict(self.headers))) as span:
            result = f"Sunny in {json.loads(arguments)['city']}."
            span.set_attributes(
                {
                    "openinference.span.kind": "TOOL",
                    "tool.name": "get_weather",
                    "input.value": arguments,
                    "output.value": result,
                }
            )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(result.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
for _ in sys.stdin:  # one line for each request
    server.handle_request()
provider.shutdown()
