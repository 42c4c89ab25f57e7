"""What a person sees in MLflow's console of one agent's chat, traced in three ways; and the page that tells of it.

    python -m support.parity

It starts a server, runs the agent of tests/apps/travel_agent.py in each way, reads the console with a browser, writes
the table of docs/parity.md, and makes the pictures of docs/images anew (`make screenshots`).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from support.console import View
from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.traced_travel_agent import EXPERIMENTS, SESSION, TAGS, USER

WAYS = ("sdk", "stock", "ours")
PAGE, PICTURES = ROOT / "docs" / "parity.md", ROOT / "docs" / "images"
_BEGIN, _END = "<!-- Made by `make screenshots`; tests/matrix/test_console.py -->\n", "<!-- end of table -->\n"
_SECONDS = 240

# What is said in tests/apps/travel_agent.py, as a person reads it.
SYSTEM = "You are a travel agent. Look things up before you answer."
QUESTIONS = ("This is my bicycle. Can it come along from Lyon to Paris?", "And what is the weather there?")
ANSWERS = (
    "Yes: a bicycle on wheels travels with a ticket of 10 euro. No seat could be booked, the train is full.",
    "Rain at 11 degrees: pack a raincoat.",
)
RULES = ("A bicycle on wheels needs a ticket of 10 euro.", "A folded bicycle in a bag is luggage and free.")
TOOLS = ["search_rules", "book_seat", "get_weather"]
AGENT, MODEL, SEARCH, BOOK, RETRIEVER, STEP = "travel-agent", "Model", "search_rules", "book_seat", "RuleBook", "tools"


def _column(name: str, wanted: str | None = None) -> Callable[[View], bool]:
    """Whether a column of the list says something, or this, in the row of the first turn."""
    return lambda view: (
        view["list"][1].get(name, "").strip() not in ("", "-") and (wanted is None or view["list"][1][name] == wanted)
    )


def _spans(view: View, name: str) -> list[View]:
    return [span for span in view["trace"]["spans"] if span["name"] == name]


def _span(name: str, *texts: str, of: str = "text", nth: int = 0) -> Callable[[View], bool]:
    """Whether a span shows these texts, one after the other."""

    def shown(view: View) -> bool:
        rest = str(_spans(view, name)[nth][of])
        for text in texts:
            _, found, rest = rest.partition(text)
            if not found:
                return False
        return True

    return shown


def _icons(view: View) -> bool:
    """Agent, step, model, tool and retriever are told apart by their icons, and like is like."""
    names = (AGENT, STEP, MODEL, SEARCH, RETRIEVER)
    icons = [{span["icon"] for span in _spans(view, name)} for name in names]
    return all(len(each) == 1 for each in icons) and len(set.union(*icons)) == len(names)


def _only(name: str, begin: str, *lines: str) -> Callable[[View], bool]:
    """Whether a span's text is these lines and no more, from a heading on."""
    return lambda view: str(_spans(view, name)[0]["text"]).partition(begin)[2].split("\n") == ["", "Pretty", *lines]


def _turn(number: int) -> list[str]:
    return ["User", QUESTIONS[number], "Assistant", ANSWERS[number]]


_CALLS = ("Tool calls", SEARCH, "query", "bicycle", BOOK, "train", "TGV 6608")

FEATURES: Mapping[str, Callable[[View], bool]] = {
    "list: trace name": _column("Trace name", AGENT),
    "list: input in the user's words": _column("Input", QUESTIONS[0]),
    "list: output in the agent's words": _column("Output", ANSWERS[0]),
    "list: user": _column("User", USER),
    "list: session": _column("Session", SESSION),
    "list: duration, state": lambda view: _column("Duration")(view) and _column("State", "OK")(view),
    "list: tokens": _column("Tokens", "2400"),
    "list: cost": _column("Cost", "$0.00054"),
    "list: the app's own tags": _column("Tags", *(f"{key}: {value}" for key, value in TAGS.items())),
    "list: source": _column("Source"),
    "tree: all spans": lambda view: len(view["trace"]["spans"]) == 10,
    "tree: icons of agent, step, model, tool, retriever": _icons,
    "tree: tokens and cost of each call": lambda view: all(
        span["figures"][1:] == ["1.2K", "$0.00027"] for span in _spans(view, MODEL)
    ),
    "tree: only the failed tool is red": lambda view: (
        [span["name"] for span in view["trace"]["spans"] if span["red"]] == [BOOK]
    ),
    "agent: question and answer as bubbles": _span(AGENT, "User", QUESTIONS[0], "Outputs", "Assistant", ANSWERS[0]),
    "agent: image": lambda view: _spans(view, AGENT)[0]["images"] > 0,
    "agent: intermediate steps in its output": _span(AGENT, "Outputs", *_CALLS, ANSWERS[0]),
    "model: system prompt and question as bubbles": _span(MODEL, "System", SYSTEM, "User", QUESTIONS[0], "Outputs"),
    "model: image": lambda view: _spans(view, MODEL)[0]["images"] == 1,
    "model: tool calls as cards": _span(MODEL, "Outputs", "Assistant", *_CALLS),
    "model: tool results as bubbles": _span(MODEL, *_CALLS, RULES[0], "failed: TGV 6608 is full", "Outputs", nth=1),
    "model: panel of available tools": lambda view: _spans(view, MODEL)[0]["tools"] == TOOLS,
    "model: model name among the inputs": _span(MODEL, "model", "gpt-4o-mini", "Outputs"),
    "step: tool calls as cards": _span("model", "Outputs", "Assistant", *_CALLS),
    "step: tool results as bubbles": _span(STEP, "Outputs", "Pretty", RULES[0]),
    "tool: arguments by name": _span(SEARCH, "Inputs", "query", "bicycle", "Outputs"),
    "tool: only its result as output": _only(SEARCH, "Outputs", " ".join(RULES)),
    "tool: exception": _span(BOOK, "Exception", "ValueError", of="events"),
    "tool: exception message and stack trace": lambda view: all(
        word in _spans(view, BOOK)[0]["events"] for word in ("TGV 6608 is full", "Traceback (most recent call last)")
    ),
    "retriever: documents as cards, with metadata": _only(
        RETRIEVER, "Outputs", RULES[0], "page", ":\xa0", "1", RULES[1], "page", ":\xa0", "2"
    ),
    "session page: both turns": lambda view: (
        [line for line in view["session"].split("\n") if line.strip()] == ["Turn 1", *_turn(0), "Turn 2", *_turn(1)]
    ),
    "tool dashboard: calls, failures, names": lambda view: all(
        text in view["tools"]
        for text in ("3\nTotal Tool Calls", "66.67%\nSuccess Rate", "1\nFailed Calls", *(f"\n{x}\n1\n" for x in TOOLS))
    ),
    "usage: tokens": lambda view: "4.80K (4.00K input, 800 output)" in view["usage"],
    "usage: cost, by model": lambda view: "$0.00108 Total Cost" in view["usage"] and "gpt-4o-mini" in view["usage"],
}

EXCEPTIONS: Mapping[str, str] = {
    "list: source": "the name of the script is trace metadata, and MLflow reads it from no span attribute; "
    "`trace_info=True` sets it with a trace metadata update ([compatibility.md](compatibility.md))",
    "agent: image": "the root span has only the user's text, because MLflow's list and its scorers turn anything more "
    "into JSON text (see the SDK's row *input in the user's words*); the model's span below has the image",
    "agent: intermediate steps in its output": "for the same reason: list, sessions and scorers read the "
    "answer alone; the spans below show the steps",
}


def record_views(server: MLflowServer, pictures: Path | None = None) -> dict[str, View]:
    """What is seen of the chat, by way.

    Args:
        server: One that has none of the three experiments yet.
        pictures: A folder for screenshots.
    """
    experiments = {}
    for way in WAYS:
        experiments[way] = server.create_experiment(EXPERIMENTS[way])
        named = experiments[way] if way == "stock" else EXPERIMENTS[way]
        _run("support.traced_travel_agent", way, "--tracking-uri", server.uri, "--experiment", named)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "seen.json")
        words = ["--tracking-uri", server.uri, "--json", str(target)]
        words += ["--pictures", str(pictures)] if pictures else []
        _run("support.console", *words, *(f"{way}={number}" for way, number in experiments.items()))
        return dict(json.loads(target.read_text()))


def _run(module: str, *words: str) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))},
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compare_views(found: Mapping[str, View]) -> dict[str, dict[str, bool]]:
    """By feature and way, whether it is seen."""
    return {name: {way: bool(shows(found[way])) for way in WAYS} for name, shows in FEATURES.items()}


def format_table(found: Mapping[str, Mapping[str, bool]]) -> str:
    """The table as Markdown."""
    rows = [f"| view: element | {' | '.join(EXPERIMENTS.values())} |", "|---|---|---|---|"]
    rows += [f"| {name} | {' | '.join('yes' if by[way] else '-' for way in WAYS)} |" for name, by in found.items()]
    rows += ["", "| shown only by the SDK | reason |", "|---|---|"]
    rows += [f"| {name} | {EXCEPTIONS.get(name, '')} |" for name, by in found.items() if by["sdk"] and not by["ours"]]
    return "\n".join(rows) + "\n"


def read_table() -> str:
    """The table as it stands in the page."""
    text = PAGE.read_text()
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]


def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder, "server"))
        try:
            found = record_views(server, Path(folder, "pictures"))
        finally:
            server.stop()
        text = PAGE.read_text()
        begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
        PAGE.write_text(text[:begin] + format_table(compare_views(found)) + text[end:])
        _keep(Path(folder, "pictures"))


def _keep(made: Path) -> None:
    """Puts the pictures that documents show into their folder."""
    PICTURES.mkdir(exist_ok=True)
    for name in ("list-stock", "list-ours", "span2-stock", "span2-ours", "session-ours", "tool-calls-ours"):
        (PICTURES / f"{name}.png").write_bytes((made / f"{name}.png").read_bytes())


if __name__ == "__main__":
    main()
