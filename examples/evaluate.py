"""Judges an agent by its traces: what plain OpenTelemetry has brought to MLflow is what MLflow's scorers read.

`serve()` is the app in production: the agent of `quickstart.py` talks with a traveller, and knows nothing of any
judgement. `evaluate()` comes later and elsewhere, and has nothing but the traces: scorers in code, and scorers
that ask a language model. No model is needed to try it: `LocalJudge` stands for one, says what it was given, and
finds fault with nothing but gaps. With `--judge openai:/gpt-4o-mini` and a key, a real one judges.

    python examples/evaluate.py [--judge MODEL] [--prompts FILE]

Needs an MLflow server from 3.14 on at MLFLOW_TRACKING_URI (default http://localhost:5000), and `pip install mlflow`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mlflow_otlp_exporter import configure, trace_context
from quickstart import QUESTION, answer

EXPERIMENT = "evaluated-agent"
QUESTIONS = (QUESTION, "And the day after from Paris to Nice, with the bicycle again: which train, and which weather?")


# --- the app, in production ---


def serve(session: str) -> None:
    """Answers a traveller's questions, as a chat of one session.

    Args:
        session: The chat's id.
    """
    telemetry = configure(experiment=EXPERIMENT, auto_instrument=True)
    with trace_context(session=session, user="ada"):
        for question in QUESTIONS:
            print(f"User      {question}\nAgent     {answer(question)}")
    telemetry.shutdown()


# --- the evaluation, later ---


def evaluate(session: str, judge: str) -> dict[str, dict[str, Any]]:
    """Judges the traces of a session.

    Args:
        session: The chat's id.
        judge: The model that is asked, as MLflow names it.

    Returns:
        By the id of each trace, the value of each assessment, or what kept it from being made.
    """
    import mlflow  # the app above must do without
    from mlflow.genai import scorers

    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", "http://localhost:5000"))
    experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
    ours = f"metadata.`mlflow.trace.session` = '{session}'"
    traces = mlflow.search_traces(locations=[experiment], filter_string=ours)
    mlflow.genai.evaluate(
        data=traces,
        scorers=[
            *code_scorers(),
            scorers.RetrievalGroundedness(model=judge),
            scorers.ToolCallCorrectness(model=judge),
            scorers.RelevanceToQuery(model=judge),
            scorers.ConversationCompleteness(model=judge),  # of the session as a whole
        ],
    )
    judged = mlflow.search_traces(locations=[experiment], filter_string=ours, return_type="list")
    return {trace.info.trace_id: dict(assessed(trace)) for trace in judged}


def code_scorers() -> list[Any]:
    """Scorers that are plain Python: what they look at are the spans of a trace."""
    from mlflow.entities import SpanType, Trace
    from mlflow.genai.scorers import scorer

    @scorer
    def tools_called(trace: Trace) -> str:
        """Which tools, in which order, with what."""
        calls = [span for span in trace.data.spans if span.span_type == SpanType.TOOL]
        calls.sort(key=lambda span: span.start_time_ns)
        return "; ".join(f"{call.name} {json.dumps(call.inputs, sort_keys=True)}" for call in calls)

    @scorer
    def quotes_a_rule(trace: Trace, outputs: Any) -> bool:
        """Whether the answer has a sentence of a document that was found."""
        found = [span.outputs for span in trace.data.spans if span.span_type == SpanType.RETRIEVER]
        return any(document["page_content"] in str(outputs) for documents in found for document in documents)

    @scorer
    def tokens(trace: Trace) -> int:
        """What the models of the trace took together."""
        return int((trace.info.token_usage or {}).get("total_tokens", 0))

    return [tools_called, quotes_a_rule, tokens]


def assessed(trace: Any) -> Iterator[tuple[str, Any]]:
    """The assessments that MLflow keeps with a trace: name, and value or error."""
    for assessment in trace.info.assessments:
        error = assessment.error
        yield assessment.name, f"failed: {error.error_message}" if error else assessment.value


# --- a stand-in for the model that judges ---

# What MLflow's questions to a judge are made of: each part stands between tags.
PARTS = re.compile(r"<(question|answer|document|request|actual_tool_calls|available_tools)>(.*?)</\1>", re.DOTALL)
NOTHING = ("", "[]", "{}", "None", "No tools called", "No tools available")


class LocalJudge:
    """A model that says yes to whatever has no empty part, and remembers what it was asked."""

    model = "openai:/local-judge"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def reply(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A completion with the verdict."""
        prompt = "\n".join(str(message["content"]) for message in messages)
        self.prompts.append(prompt)
        gaps = [name for name, text in PARTS.findall(prompt) if text.strip() in NOTHING]
        verdict = {"rationale": f"missing: {gaps}" if gaps else "nothing is missing", "result": "no" if gaps else "yes"}
        message = {"role": "assistant", "content": json.dumps(verdict)}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "local-judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }


@contextmanager
def listening(judge: LocalJudge) -> Iterator[LocalJudge]:
    """Has the judge answer on the loopback, where MLflow finds it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(judge.reply(asked["messages"])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        os.environ["OPENAI_API_KEY"] = "none-needed"
        os.environ["OPENAI_API_BASE"] = f"http://127.0.0.1:{server.server_address[1]}/v1"
        # MLflow would look up on the internet how much such a model can read.
        os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Serves, evaluates, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", help="a model as MLflow names it, such as openai:/gpt-4o-mini; default: a stand-in")
    parser.add_argument("--prompts", type=Path, help="a file for the questions that the stand-in was asked, as JSON")
    arguments = parser.parse_args()
    session = f"chat-{secrets.token_hex(4)}"
    serve(session)
    local = LocalJudge()
    with nullcontext() if arguments.judge else listening(local):
        found = evaluate(session, arguments.judge or local.model)
    for trace_id, values in found.items():
        print(f"\n{trace_id}")
        for name, value in sorted(values.items()):
            print(f"  {name:28}{value}")
    if arguments.prompts:
        arguments.prompts.write_text(json.dumps(local.prompts, indent=2))


if __name__ == "__main__":
    main()
