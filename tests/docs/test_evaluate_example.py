"""examples/evaluate.py: MLflow's scorers read documents, calls and messages from traces, and no model extracts them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from support.environments import ROOT
from support.mlflow_server import MLflowServer

QUESTIONS = (
    "I go from Lyon to Paris tomorrow, with my bicycle. Which train is it, and do I need a raincoat?",
    "And the day after from Paris to Nice, with the bicycle again: which train, and which weather?",
)
ROUTES = (("Lyon", "Paris"), ("Paris", "Nice"))
ANSWERS = tuple(
    f"Take TGV 6608 ({origin} 10:04, {city} 12:06), which has room for bicycles. A bicycle on wheels needs a ticket of "
    f"10 euro. Expect rain in {city} at 11 degrees: pack a raincoat."
    for origin, city in ROUTES
)
DOCUMENTS = ("A bicycle on wheels needs a ticket of 10 euro.", "A folded bicycle in a bag is luggage and free.")
EACH_TURN = pytest.mark.parametrize("index", [0, 1])


class EvaluationResult:
    """The prompts that the judge got, and the stored traces of the chat in the order of its turns."""

    def __init__(self, prompts: list[str], traces: list[dict[str, Any]]) -> None:
        self.prompts, self.traces = prompts, traces

    def find_prompt(self, beginning: str, index: int) -> str:
        """Find the only prompt with this beginning and this turn's question."""
        (match,) = [prompt for prompt in self.prompts if prompt.startswith(beginning) and QUESTIONS[index] in prompt]
        return match

    def read_assessments(self, index: int) -> Mapping[str, Any]:
        """Read the values of the assessments of a turn's trace."""
        assessments = self.traces[index]["assessments"]
        return {
            assessment["assessment_name"]: assessment["feedback"].get("value", assessment["feedback"].get("error"))
            for assessment in assessments
        }


@pytest.fixture(scope="module")
def evaluation(mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    folder = tmp_path_factory.mktemp("evaluate")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))}
    environment |= {
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, str(ROOT / "examples" / "evaluate.py"), "--prompts", str(folder / "prompts.json")]
    done = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": str(ROOT / "src")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    experiment = mlflow_server.experiment("evaluated-agent")
    assert experiment is not None
    traces = mlflow_server.search_traces(experiment["experiment_id"])
    traces.sort(key=lambda trace: str(trace["request_time"]))
    return EvaluationResult(json.loads((folder / "prompts.json").read_text()), traces)


def test_judge_gets_one_prompt_per_scorer(evaluation: EvaluationResult) -> None:
    """Three scorers for each of two traces, and one for the session. No prompt asks the judge to extract tools."""
    assert len(evaluation.prompts) == 2 * 3 + 1


@EACH_TURN
def test_groundedness_prompt_contains_documents(index: int, evaluation: EvaluationResult) -> None:
    prompt = evaluation.find_prompt("Consider the following claim and document", index)
    assert f"<question>{QUESTIONS[index]}</question>" in prompt
    assert f"<answer>{ANSWERS[index]}</answer>" in prompt
    assert f"<document>{[{'content': text} for text in DOCUMENTS]}</document>" in prompt


@EACH_TURN
def test_tool_call_prompt_contains_calls_results_and_available_tools(index: int, evaluation: EvaluationResult) -> None:
    prompt = evaluation.find_prompt("Consider whether the agent selected appropriate tools", index)
    origin, city = ROUTES[index]
    assert f"<request>\n{QUESTIONS[index]}\n</request>" in prompt
    calls = prompt[prompt.index("<actual_tool_calls>") : prompt.index("</actual_tool_calls>")]
    *parallel_calls, rules = calls.split("\n\n")
    # LangGraph runs the calls of one message in threads, which may start in any order.
    trains, weather = sorted(parallel_calls, key=lambda call: "find_trains" not in call)
    assert f"find_trains\n  Input Arguments: {{'origin': '{origin}', 'destination': '{city}'}}\n" in trains
    assert f"'leaves': '{origin} 08:04'" in trains
    assert f"get_weather\n  Input Arguments: {{'city': '{city}'}}\n" in weather
    assert f"Output: {{'city': '{city}', 'sky': 'rain', 'celsius': 11}}" in weather
    assert "search_rules\n  Input Arguments: {'query': 'ticket for a bicycle'}\n" in rules
    assert "Exception" not in calls
    available_tools = prompt[prompt.index("<available_tools>") : prompt.index("</available_tools>")]
    for tool in (
        "get_weather: Tomorrow's weather",
        "find_trains: Tomorrow's trains",
        "search_rules: Search the railway",
    ):
        assert f"- {tool}" in available_tools
    assert "- origin (required): string" in available_tools


@EACH_TURN
def test_relevance_prompt_contains_question_and_answer(index: int, evaluation: EvaluationResult) -> None:
    prompt = evaluation.find_prompt("Consider the following question and answer", index)
    assert f"<question>{QUESTIONS[index]}</question>" in prompt
    assert ANSWERS[index] in prompt


def test_conversation_prompt_contains_all_turns_of_session(evaluation: EvaluationResult) -> None:
    (prompt,) = [candidate for candidate in evaluation.prompts if "conversation history" in candidate]
    messages = [
        {"role": role, "content": text}
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        for role, text in (("user", question), ("assistant", answer))
    ]
    assert json.dumps(messages, indent=2) in prompt


@EACH_TURN
def test_scorers_store_expected_values(index: int, evaluation: EvaluationResult) -> None:
    origin, city = ROUTES[index]
    expected = {
        "quotes_a_rule": True,
        "retrieval_groundedness": "yes",
        "tool_call_correctness": "yes",
        "relevance_to_query": "yes",
    }
    if index == 0:  # MLflow keeps a session's assessment with its first trace
        expected["conversation_completeness"] = "yes"
    values = dict(evaluation.read_assessments(index))
    *parallel_calls, last_call = values.pop("tools_called").split("; ")
    assert sorted(parallel_calls) == [  # threads of LangGraph run them in any order
        f'find_trains {{"destination": "{city}", "origin": "{origin}"}}',
        f'get_weather {{"city": "{city}"}}',
    ]
    assert last_call == 'search_rules {"query": "ticket for a bicycle"}'
    assert values.pop("tokens") > 0
    assert values == expected
