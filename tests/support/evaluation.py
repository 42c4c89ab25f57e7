"""Run the functions that MLflow's scorers use to read traces on the recorded traces.

python -m support.evaluation --tracking-uri http://127.0.0.1:5000 --json OUT
"""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from support.corpus import send
from support.recordings import cases

JUDGED_SOURCES = ("langfuse", "langsmith-otel", "llama-index-otel", "vercel-ai-5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    import mlflow  # slow, and not needed for --help

    client = mlflow.MlflowClient(arguments.tracking_uri)
    sent = send(client, arguments.tracking_uri, "compact", list(cases()))
    readings = {key: read_trace(trace) for key, trace in sent.stored.items()}
    for key, reading in readings.items():
        if key.partition("/")[0] in JUDGED_SOURCES:
            reading["judged"] = read_judge_prompts(sent.stored[key])
    arguments.json.write_text(json.dumps(readings, default=str))


def read_trace(trace: Any) -> dict[str, Any]:
    """Return what the functions read in a trace; `model_calls` counts the calls of a language model."""
    from mlflow.genai.utils import trace_utils

    called = trace_utils.extract_tools_called_from_trace(trace)
    # Without tool definitions, MLflow lets a language model guess them, and hides its failures.
    with mock.patch.object(trace_utils, "get_chat_completions_with_structured_output") as model:
        offered = trace_utils.extract_available_tools_from_trace(trace, model="openai:/none")
    contexts = trace_utils.extract_retrieval_context_from_trace(trace)
    return {
        "request": trace_utils.extract_request_from_trace(trace),
        "response": trace_utils.extract_response_from_trace(trace),
        "called": [
            {"name": c.name, "arguments": c.arguments, "result": c.outputs, "exception": c.exception} for c in called
        ],
        "offered": [tool.function.name for tool in offered if tool.function] if not model.called else [],
        "documents": [[document["content"] for document in context] for context in contexts.values()],
        "conversation": trace_utils.resolve_conversation_from_session([trace], include_tool_calls=True),
        "session": trace.info.trace_metadata.get("mlflow.trace.session"),
        "model_calls": model.call_count,
    }


def read_judge_prompts(trace: Any) -> dict[str, str]:
    """Return what scorers give to their judge, by scorer; nothing if a scorer finds no input in the trace."""
    from mlflow import MlflowException
    from mlflow.entities import Feedback
    from mlflow.genai import scorers
    from mlflow.genai.judges import builtin, instructions_judge

    prompts: list[str] = []

    def answer(*args: Any, **arguments: Any) -> Feedback:
        prompt = arguments["prompt"] if "prompt" in arguments else args[1]
        prompts.append(prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt))
        return Feedback(name="judge", value="yes")

    judged: dict[str, str] = {}
    trace_scorers = (scorers.ToolCallCorrectness, scorers.RelevanceToQuery, scorers.RetrievalGroundedness)
    calls: list[tuple[Any, dict[str, Any]]] = [(scorer, {"trace": trace}) for scorer in trace_scorers]
    calls.append((scorers.ConversationCompleteness, {"session": [trace]}))
    with (
        mock.patch.object(builtin, "invoke_judge_model", answer),
        mock.patch.object(instructions_judge, "invoke_judge_model", answer),
    ):
        for scorer, arguments in calls:
            prompts.clear()
            with suppress(MlflowException):
                scorer(model="openai:/none")(**arguments)
            if prompts:
                judged[scorer.__name__] = "\n".join(prompts)
    return judged


if __name__ == "__main__":
    main()
