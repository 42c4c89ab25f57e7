"""Calls of the public API with the types that users pass: checked by mypy, never run."""

from pathlib import Path

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from mlflow_otlp_exporter import (
    FlushResult,
    MLflowSpanExporter,
    Stats,
    Telemetry,
    configure,
    flush,
    log_expectation,
    log_feedback,
    shutdown,
)

telemetry: Telemetry = configure()
telemetry = configure(
    tracking_uri="http://localhost:5000",
    experiment="agents",
    workspace="team-a",
    service_name="bot",
    credentials=lambda: "token",
    headers={"x-forwarded-access-token": "token"},
)
telemetry = configure(experiment_id=7, credentials=("user", "password"))
telemetry = configure(credentials=Path("/var/run/secrets/kubernetes.io/serviceaccount/token"))
result: FlushResult = telemetry.flush(timeout=1.5)
result = flush()
result = shutdown(timeout=2)
delivered: int = result.delivered
stats: Stats = telemetry.stats()
url: str | None = telemetry.trace_url()
url = telemetry.trace_url(7, check=False)
telemetry = configure(create_experiment=False, verbose=True, durability="every-span", noise="all", mask=["email"])
telemetry = configure(durability="every")  # type: ignore[arg-type]
assessment: str | None = telemetry.log_feedback(None, "helpful", True, rationale="why", source="ada")
assessment = log_feedback("tr-0", "stars", 4, metadata={"channel": "web"}, span_id=7, workspace="team-a")
assessment = log_feedback(name="stars", value=4)
assessment = log_expectation(7, "expected_response", ["a"], source_type="CODE")

exporter: SpanExporter = MLflowSpanExporter("http://localhost:4318/v1/traces", None, None, None, {"a": "b"}, 10)
exporter = MLflowSpanExporter(tracking_uri="http://localhost:5000", experiment="agents", compression="gzip")
BatchSpanProcessor(exporter)
outcome: SpanExportResult = exporter.export([])
