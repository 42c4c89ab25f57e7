"""Many traces, made by the real SDK."""

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
    """Make ended spans of whole traces: each a root `root N`, and `children` children `child N.M` with M from 1.

    `attributes` returns a span's attributes for the number of the trace and of the span (0 for the root).
    """
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        tracer = tracer_provider.get_tracer("tests")
        for number in range(count):
            attributes_of = attributes or (lambda _trace, _span: {})
            root = tracer.start_span(f"root {number}", attributes=attributes_of(number, 0))
            context = set_span_in_context(root)
            for child in range(1, children + 1):
                tracer.start_span(f"child {number}.{child}", context, attributes=attributes_of(number, child)).end()
            root.end()
    return list(memory.get_finished_spans())


_NUL = "a\x00b"
_INVALID_COSTS = (
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
# Some MLflow version from 3.6.0 to 3.17.2 rejects each of these, or may do so, on SQLite or PostgreSQL.
_REJECTABLE: dict[str, Mapping[str, Any]] = {
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
    **{f"cost {cost!r}": {"mlflow.llm.cost": cost} for cost in _INVALID_COSTS},
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
    "nul in a question": {"mlflow.spanInputs": json.dumps({"messages": [{"role": "user", "content": _NUL}]})},
    "nul in an answer": {
        "output.value": json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": _NUL}}]})
    },
    "nul in parts of a question": {
        "input.value": json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": _NUL}]}]})
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
    """Make traces of one span with everything that some MLflow version rejects and the SDK accepts."""
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        tracer = tracer_provider.get_tracer("tests")
        for name, attributes in _REJECTABLE.items():
            tracer.start_span(name, attributes=attributes).end()
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
    """Make a text that cannot be compressed much."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=size))


def wait_until(condition: Callable[[], object], timeout: float = 30.0, what: str = "") -> None:
    """Wait until a condition is true; fail after the time-out."""
    end = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what or condition}"
        pause.wait(POLL_SECONDS)


def stored_span_names(database: Path, experiment: str) -> list[str]:
    """Return the names of all spans of an experiment in an MLflow server's SQLite file, one for each row."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT name FROM spans WHERE experiment_id = ?", (int(experiment),))
        return sorted(str(row[0]) for row in rows)
