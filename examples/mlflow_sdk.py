"""MLflow's own SDK beside OpenTelemetry: `@mlflow.trace` and `@traced` in one trace.

    pip install mlflow-tracing
    python examples/mlflow_sdk.py

The variable makes MLflow's SDK use the app's tracer provider instead of one of its own. The SDK sends what it knows of
the trace as well: as both name the same trace and spans, MLflow has them once. Both must name the same experiment: a
trace cannot be in two.
"""

from __future__ import annotations

import os

os.environ["MLFLOW_USE_DEFAULT_TRACER_PROVIDER"] = "false"

import mlflow

from mlflow_otlp_exporter import configure, trace_context, traced


@traced(kind="TOOL")
def get_weather(city: str) -> str:
    """A tool of the part of the app that speaks OpenTelemetry."""
    return f"rain in {city}"


@mlflow.trace(span_type="CHAIN")
def plan(question: str) -> str:
    """A step of the part that was written for MLflow's SDK; what it calls are its children."""
    return f"{question} {get_weather('Lyon')}"


@traced(kind="AGENT")
def answer(question: str) -> str:
    """The root of the trace."""
    return plan(question)


def main() -> None:
    """Asks one question."""
    telemetry = configure(experiment="side-by-side")
    mlflow.set_experiment("side-by-side")
    mlflow.tracing.enable()  # now, so that the SDK knows of the spans that are its own spans' parents
    with trace_context(session="s-42", user="ada"):
        print(answer("Will it rain?"))
    print(telemetry.flush())
    print(telemetry.trace_url())


if __name__ == "__main__":
    main()
