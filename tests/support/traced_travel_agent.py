"""Run the agent of tests/apps/travel_agent.py, traced in one of three ways.

    python -m support.traced_travel_agent WAY --tracking-uri http://127.0.0.1:5000 --experiment NAME

WAY is `sdk` (MLflow's own), `stock` (OpenInference's instrumentation and OpenTelemetry's exporter) or `ours` (the same
instrumentation, and this library). It runs in its own process, because all three change the process.
"""

import argparse
import runpy
from collections.abc import Callable
from typing import Any

from support.environments import ROOT

EXPERIMENTS = {"sdk": "MLflow SDK", "stock": "OpenTelemetry", "ours": "mlflow-otlp-exporter"}
SESSION, USER, TAGS = "chat-7", "ada", {"release": "2.3.1"}

App = Callable[[], Any]


def _sdk(app: App, tracking_uri: str, experiment: str) -> None:
    import mlflow  # each way imports only what it needs

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(experiment)
    mlflow.langchain.autolog()
    with mlflow.tracing.context(session_id=SESSION, user=USER, tags=TAGS):
        app()
    mlflow.flush_trace_async_logging(terminate=True)


def _stock(app: App, tracking_uri: str, experiment: str) -> None:
    from openinference.instrumentation import using_attributes
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    headers = {"x-mlflow-experiment-id": experiment}
    exporter = OTLPSpanExporter(endpoint=f"{tracking_uri}/v1/traces", headers=headers)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    LangChainInstrumentor().instrument(tracer_provider=provider)
    with using_attributes(session_id=SESSION, user_id=USER, metadata=TAGS):
        app()
    provider.shutdown()


def _ours(app: App, tracking_uri: str, experiment: str) -> None:
    from mlflow_otlp_exporter import configure, trace_context

    telemetry = configure(tracking_uri=tracking_uri, experiment=experiment, auto_instrument=["langchain"])
    with trace_context(session=SESSION, user=USER, tags=TAGS):
        app()
    telemetry.shutdown()


WAYS = {"sdk": _sdk, "stock": _stock, "ours": _ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--experiment", required=True, help="name, or, for the stock exporter, id")
    arguments = parser.parse_args()
    run_chat = runpy.run_path(str(ROOT / "tests" / "apps" / "travel_agent.py"))["run_chat"]
    WAYS[arguments.way](run_chat, arguments.tracking_uri, arguments.experiment)


if __name__ == "__main__":
    main()
