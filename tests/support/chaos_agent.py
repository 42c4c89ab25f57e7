"""An agent for tests that kill it: `python -m support.chaos_agent TRUTH RUN STOP PAUSE`.

It writes the name and end time of each ended span into the file TRUTH, so that the test knows which spans must have
arrived after a kill. It ends when the file STOP exists.
"""

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path

from opentelemetry import trace

from mlflow_otlp_exporter import configure

CHILDREN = 4
COST = {"input_cost": 0.001, "output_cost": 0.002, "total_cost": 0.003}


def tokens(name: str) -> dict[str, int]:
    """Return the tokens of a span, derived from its name: every other child is a model call."""
    _, trace, span = (int(part) for part in name.split("."))
    if span % 2 == 0:
        return {}
    prompt = 10 + trace % 50
    return {"input_tokens": prompt, "output_tokens": span, "total_tokens": prompt + span}


def main(truth: str, run: str, stop: str, pause_seconds: str) -> None:
    telemetry = configure(auto_instrument=False)
    tracer, pause = trace.get_tracer("chaos"), threading.Event()
    descriptor = os.open(truth, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def record_end(name: str) -> None:
        os.write(descriptor, f"{time.time()} {name}\n".encode())

    for number in itertools.count():
        with tracer.start_as_current_span(f"{run}.{number}.0"):
            for child in range(1, CHILDREN + 1):
                name = f"{run}.{number}.{child}"
                attributes = {"input.value": "why? " * 100}
                if usage := tokens(name):
                    attributes |= {"mlflow.chat.tokenUsage": json.dumps(usage), "mlflow.llm.cost": json.dumps(COST)}
                tracer.start_span(name, attributes=attributes).end()
                record_end(name)
                pause.wait(0.01)
        record_end(f"{run}.{number}.0")
        if Path(stop).exists():
            break
        pause.wait(float(pause_seconds))
    sys.stdout.write(f"{telemetry.shutdown(60)} {telemetry.stats()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
