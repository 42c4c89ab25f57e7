"""Evaluate an agent by its traces: MLflow's scorers read the spans that plain OpenTelemetry sent to MLflow.

`serve()` is the app in production: the agent of `quickstart.py` talks with a traveller, without any evaluation code.
`evaluate()` runs later, in another place, and uses only the traces: with code scorers, and with scorers that ask a
language model. The example works without a model: `LocalJudge` replaces it, records its prompts, and rejects only
prompts with an empty part. With `--judge openai:/gpt-4o-mini` and an API key, a real model judges.

    python examples/evaluate.py [--judge MODEL] [--prompts FILE]

Needs an MLflow server 3.14 or newer at MLFLOW_TRACKING_URI (default http://localhost:5000), and `pip install mlflow`.
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
    """Answer a traveller's questions as a chat of one session.

    Args:
        session: Session id of the chat.
    """
    telemetry = configure(experiment=EXPERIMENT, auto_instrument=True)
    with trace_context(session=session, user="ada"):
        for question in QUESTIONS:
            print(f"User      {question}\nAgent     {answer(question)}")
    telemetry.shutdown()


# --- the evaluation, later ---


def evaluate(session: str, judge: str) -> dict[str, dict[str, Any]]:
    """Evaluate the traces of a session.

    Args:
        session: Session id of the chat.
        judge: The model that judges, in MLflow's notation.

    Returns:
        For each trace id, the value or the error of each assessment.
    """
    import mlflow  # the app must work without mlflow
    from mlflow.genai import scorers

    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", "http://localhost:5000"))
    experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
    own_session = f"metadata.`mlflow.trace.session` = '{session}'"
    traces = mlflow.search_traces(locations=[experiment], filter_string=own_session)
    mlflow.genai.evaluate(
        data=traces,
        scorers=[
            *make_code_scorers(),
            scorers.RetrievalGroundedness(model=judge),
            scorers.ToolCallCorrectness(model=judge),
            scorers.RelevanceToQuery(model=judge),
            scorers.ConversationCompleteness(model=judge),  # evaluates the whole session
        ],
    )
    evaluated_traces = mlflow.search_traces(locations=[experiment], filter_string=own_session, return_type="list")
    return {trace.info.trace_id: dict(read_assessments(trace)) for trace in evaluated_traces}


def make_code_scorers() -> list[Any]:
    """Return scorers in plain Python, which read the spans of a trace."""
    from mlflow.entities import SpanType, Trace
    from mlflow.genai.scorers import scorer

    @scorer
    def tools_called(trace: Trace) -> str:
        """Return the tool calls in their order, with arguments."""
        calls = [span for span in trace.data.spans if span.span_type == SpanType.TOOL]
        calls.sort(key=lambda span: span.start_time_ns)
        return "; ".join(f"{call.name} {json.dumps(call.inputs, sort_keys=True)}" for call in calls)

    @scorer
    def quotes_a_rule(trace: Trace, outputs: Any) -> bool:
        """Return whether the answer quotes a retrieved document."""
        retrieved = [span.outputs for span in trace.data.spans if span.span_type == SpanType.RETRIEVER]
        return any(document["page_content"] in str(outputs) for documents in retrieved for document in documents)

    @scorer
    def tokens(trace: Trace) -> int:
        """Return the total tokens of the trace."""
        return int((trace.info.token_usage or {}).get("total_tokens", 0))

    return [tools_called, quotes_a_rule, tokens]


def read_assessments(trace: Any) -> Iterator[tuple[str, Any]]:
    """Yield the assessments that MLflow stores with a trace: name, and value or error."""
    for assessment in trace.info.assessments:
        error = assessment.error
        yield assessment.name, f"failed: {error.error_message}" if error else assessment.value


# --- a replacement for the judge model ---

# MLflow's prompts to a judge consist of parts between tags.
PARTS = re.compile(r"<(question|answer|document|request|actual_tool_calls|available_tools)>(.*?)</\1>", re.DOTALL)
EMPTY_PARTS = ("", "[]", "{}", "None", "No tools called", "No tools available")


class LocalJudge:
    """A model that answers yes to each prompt without an empty part, and records its prompts."""

    model = "openai:/local-judge"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def reply(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a completion with the verdict."""
        prompt = "\n".join(str(message["content"]) for message in messages)
        self.prompts.append(prompt)
        gaps = [name for name, text in PARTS.findall(prompt) if text.strip() in EMPTY_PARTS]
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
def serve_judge(judge: LocalJudge) -> Iterator[LocalJudge]:
    """Serve the judge on the loopback interface, and set the environment so that MLflow uses it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(judge.reply(request["messages"])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        os.environ["OPENAI_API_KEY"] = "none-needed"
        os.environ["OPENAI_API_BASE"] = f"http://127.0.0.1:{server.server_address[1]}/v1"
        # Without this, MLflow looks up the context size of the model on the internet.
        os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Serve, evaluate, and print the assessments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", help="model in MLflow's notation, such as openai:/gpt-4o-mini; default: LocalJudge")
    parser.add_argument("--prompts", type=Path, help="write the prompts of LocalJudge to this file, as JSON")
    arguments = parser.parse_args()
    session = f"chat-{secrets.token_hex(4)}"
    serve(session)
    local = LocalJudge()
    with nullcontext() if arguments.judge else serve_judge(local):
        assessments = evaluate(session, arguments.judge or local.model)
    for trace_id, values in assessments.items():
        print(f"\n{trace_id}")
        for name, value in sorted(values.items()):
            print(f"  {name:28}{value}")
    if arguments.prompts:
        arguments.prompts.write_text(json.dumps(local.prompts, indent=2))


if __name__ == "__main__":
    main()
