"""Traces as an agent makes them, by the real SDK, for tests of many at once."""

import json
import math
import random
import sqlite3
import string
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from support.spans import provider

Attributes = Callable[[int, int], Mapping[str, Any]]
POLL_SECONDS = 0.05


def make_traces(count: int, *, children: int = 0, attributes: Attributes | None = None) -> list[ReadableSpan]:
    """Ended spans of whole traces: each a root `root N`, and children `child N.M` with M from 1.

    Args:
        count: How many traces.
        children: How many children each root has.
        attributes: Told the trace's number and the span's (0 for the root), gives the span's attributes.
    """
    memory = InMemorySpanExporter()
    with provider(memory) as made:
        tracer = made.get_tracer("tests")
        for number in range(count):
            found = attributes or (lambda _trace, _span: {})
            root = tracer.start_span(f"root {number}", attributes=found(number, 0))
            context = set_span_in_context(root)
            for child in range(1, children + 1):
                tracer.start_span(f"child {number}.{child}", context, attributes=found(number, child)).end()
            root.end()
    return list(memory.get_finished_spans())


_NUL = "a\x00b"
_BAD_COSTS = (
    "much",
    "[]",
    "null",
    "1",
    '{"input_cost": "x"}',
    '{"input_cost": null}',
    '{"total_cost": "NaN"}',
    5,
    ("a", "b"),
)
# Each, refused by some MLflow from 3.6.0 to 3.17.2, on SQLite or PostgreSQL, or suspected of it.
_POISON: dict[str, Mapping[str, Any]] = {
    "long session": {"session.id": "s" * 600},
    "long conversation": {"gen_ai.conversation.id": "c" * 600},
    "long user": {"user.id": "u" * 9000},
    "long trace name": {"mlflow.traceTag.mlflow.traceName": "n" * 5000},
    "long span type": {"mlflow.spanType": "t" * 600},
    "span types": {"mlflow.spanType": ("a", "b")},
    "span type as an object": {"mlflow.spanType": "{}"},
    "kind as a list": {"openinference.span.kind": "[]"},
    "operation as a list": {"gen_ai.operation.name": ("chat", "embeddings")},
    "kind as an object": {"traceloop.span.kind": '{"a": 1}'},
    **{f"cost {cost!r}": {"mlflow.llm.cost": cost} for cost in _BAD_COSTS},
    "usage in words": {"mlflow.chat.tokenUsage": '{"input_tokens": "x", "output_tokens": 1, "total_tokens": 1}'},
    "usage and inputs that are not json": {"mlflow.spanInputs": "{", "mlflow.chat.tokenUsage": "{"},
    "odd tokens": {"llm.token_count.prompt": -1, "llm.token_count.completion": 1 << 62},
    "tokens in words": {"llm.token_count.prompt": "many", "gen_ai.usage.input_tokens": "many"},
    **{
        f"nul in {key}": {key: _NUL}
        for key in (
            "prompt",
            "session.id",
            "user.id",
            "gen_ai.conversation.id",
            "mlflow.traceTag.mlflow.traceName",
            "mlflow.traceTag.any",
            "mlflow.spanType",
            "mlflow.spanInputs",
            "mlflow.llm.model",
            "mlflow.llm.provider",
            "llm.model_name",
            "llm.provider",
            "gen_ai.request.model",
            "gen_ai.response.model",
            "gen_ai.system",
            "gen_ai.provider.name",
        )
    },
    "nul as json in a session": {"session.id": json.dumps(_NUL)},
    "nul in a key": {_NUL: "c"},
    "ten mebibytes": {"prompt": "p" * (10 << 20)},
    "not a number": {"temperature": math.nan, "top_p": math.inf},
    "half a pair": {"prompt": "\ud83d"},
    "bytes": {"blob": b"\xff\x00"},
    "integer beyond 64 bits": {"seed": 1 << 80},
}


def make_rejectable_traces() -> list[ReadableSpan]:
    """Traces of one span, with all that some MLflow refuses and that the SDK lets through."""
    memory = InMemorySpanExporter()
    with provider(memory) as made:
        tracer = made.get_tracer("tests")
        for name, found in _POISON.items():
            tracer.start_span(name, attributes=found).end()
        for name in ("", "n" * 2000, f"nul {_NUL}", "half a pair \ud83d"):
            tracer.start_span(name).end()
        now = time.time_ns()
        tracer.start_span("ends before it starts", start_time=now).end(now - 10**9)
        tracer.start_span("starts at the end of time", start_time=2**64 - 2).end(2**64 - 1)
        tracer.start_span("starts before 1970", start_time=-1).end(1)
        tracer.start_span("no times at all", start_time=0).end(0)
        span = tracer.start_span("event out of time")
        span.add_event(_NUL, {"a": math.nan}, timestamp=2**64 - 1)
        span.set_status(Status(StatusCode.ERROR, _NUL))
        span.end()
    return list(memory.get_finished_spans())


def random_text(size: int, seed: int = 0) -> str:
    """A text that no compression makes much smaller."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=size))


def wait_until(condition: Callable[[], object], timeout: float = 30.0, what: str = "") -> None:
    """Waits for a condition.

    Raises:
        AssertionError: It did not come true in time.
    """
    end = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what or condition}"
        pause.wait(POLL_SECONDS)


def stored_span_names(database: Path, experiment: str) -> list[str]:
    """The names of all spans that an MLflow server keeps of an experiment in its SQLite file, each row one."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT name FROM spans WHERE experiment_id = ?", (int(experiment),))
        return sorted(str(row[0]) for row in rows)
