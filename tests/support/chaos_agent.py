"""An agent that is made to be killed: `python -m support.chaos_agent TRUTH RUN STOP PAUSE`.

It writes each span's name into the file TRUTH when the span has ended, with the time, so that what must have arrived is
known whatever becomes of it; it ends when the file STOP is there.
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
    """The tokens of a span, which its name tells: every other child is a model's call."""
    _, trace, span = (int(each) for each in name.split("."))
    if span % 2 == 0:
        return {}
    prompt = 10 + trace % 50
    return {"input_tokens": prompt, "output_tokens": span, "total_tokens": prompt + span}


def main(truth: str, run: str, stop: str, between: str) -> None:
    """Runs until it is killed or told to stop."""
    telemetry = configure(auto_instrument=False)
    tracer, pause = trace.get_tracer("chaos"), threading.Event()
    descriptor = os.open(truth, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def ended(name: str) -> None:
        os.write(descriptor, f"{time.time()} {name}\n".encode())

    for number in itertools.count():
        with tracer.start_as_current_span(f"{run}.{number}.0"):
            for child in range(1, CHILDREN + 1):
                name = f"{run}.{number}.{child}"
                attributes = {"input.value": "why? " * 100}
                if used := tokens(name):
                    attributes |= {"mlflow.chat.tokenUsage": json.dumps(used), "mlflow.llm.cost": json.dumps(COST)}
                tracer.start_span(name, attributes=attributes).end()
                ended(name)
                pause.wait(0.01)
        ended(f"{run}.{number}.0")
        if Path(stop).exists():
            break
        pause.wait(float(between))
    sys.stdout.write(f"{telemetry.shutdown(60)} {telemetry.stats()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
