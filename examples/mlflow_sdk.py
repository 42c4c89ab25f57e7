"""Use MLflow's own SDK and OpenTelemetry side by side: `@mlflow.trace` and `@traced` in one trace.

    pip install mlflow-tracing
    python examples/mlflow_sdk.py

`MLFLOW_USE_DEFAULT_TRACER_PROVIDER=false` makes MLflow's SDK use the app's tracer provider instead of its own. The SDK
also sends its data about the trace. Both use the same trace and span ids, so MLflow stores the trace once. Both must
use the same experiment, because a trace belongs to one experiment.
"""

from __future__ import annotations

import os

os.environ["MLFLOW_USE_DEFAULT_TRACER_PROVIDER"] = "false"

import mlflow

from mlflow_otlp_exporter import configure, trace_context, traced


@traced(kind="TOOL")
def get_weather(city: str) -> str:
    """Return the weather: a function traced with OpenTelemetry."""
    return f"rain in {city}"


@mlflow.trace(span_type="CHAIN")
def plan(question: str) -> str:
    """Plan an answer: a function traced with MLflow's SDK. The calls inside become its child spans."""
    return f"{question} {get_weather('Lyon')}"


@traced(kind="AGENT")
def answer(question: str) -> str:
    """Answer a question: the root span of the trace."""
    return plan(question)


def main() -> None:
    """Ask one question."""
    telemetry = configure(experiment="side-by-side")
    mlflow.set_experiment("side-by-side")
    mlflow.tracing.enable()  # after configure(), so that the SDK sees the parent spans of its own spans
    with trace_context(session="s-42", user="ada"):
        print(answer("Will it rain?"))
    print(telemetry.flush())
    print(telemetry.trace_url())


if __name__ == "__main__":
    main()
