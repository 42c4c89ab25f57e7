"""Compare MLflow's console for one agent's chat, traced in three ways, and write docs/parity.md.

    python -m support.parity

It starts a server, runs the agent of tests/apps/travel_agent.py in each way, reads the console with a browser, and
writes the table of docs/parity.md and the pictures of docs/images (`make screenshots`).
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
_TIMEOUT_SECONDS = 240

# The texts of tests/apps/travel_agent.py.
SYSTEM = "You are a travel agent. Look things up before you answer."
QUESTIONS = ("This is my bicycle. Can it come along from Lyon to Paris?", "And what is the weather there?")
ANSWERS = (
    "Yes: a bicycle on wheels travels with a ticket of 10 euro. No seat could be booked, the train is full.",
    "Rain at 11 degrees: pack a raincoat.",
)
RULES = ("A bicycle on wheels needs a ticket of 10 euro.", "A folded bicycle in a bag is luggage and free.")
TOOLS = ["search_rules", "book_seat", "get_weather"]
AGENT, MODEL, SEARCH, BOOK, RETRIEVER, STEP = "travel-agent", "Model", "search_rules", "book_seat", "RuleBook", "tools"


def _column(name: str, expected: str | None = None) -> Callable[[View], bool]:
    """Check that a column is not empty, or has this text, in the row of the first question."""
    return lambda view: (
        view["list"][1].get(name, "").strip() not in ("", "-")
        and (expected is None or view["list"][1][name] == expected)
    )


def _spans(view: View, name: str) -> list[View]:
    return [span for span in view["trace"]["spans"] if span["name"] == name]


def _span(name: str, *texts: str, of: str = "text", nth: int = 0) -> Callable[[View], bool]:
    """Check that a span shows these texts in this order."""

    def has_texts(view: View) -> bool:
        remaining_text = str(_spans(view, name)[nth][of])
        for text in texts:
            _, match, remaining_text = remaining_text.partition(text)
            if not match:
                return False
        return True

    return has_texts


def _icons(view: View) -> bool:
    """Check that agent, step, model, tool and retriever have different icons, and equal kinds the same icon."""
    names = (AGENT, STEP, MODEL, SEARCH, RETRIEVER)
    icons = [{span["icon"] for span in _spans(view, name)} for name in names]
    return all(len(icon_set) == 1 for icon_set in icons) and len(set.union(*icons)) == len(names)


def _only(name: str, begin: str, *lines: str) -> Callable[[View], bool]:
    """Check that a span's text after a heading has exactly these lines."""
    return lambda view: str(_spans(view, name)[0]["text"]).partition(begin)[2].split("\n") == ["", "Pretty", *lines]


def _exchange(number: int) -> list[str]:
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
        [line for line in view["session"].split("\n") if line.strip()]
        == ["Turn 1", *_exchange(0), "Turn 2", *_exchange(1)]
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
    """Run the chat in each way on a new server, and return the console's views by way."""
    experiments = {}
    for way in WAYS:
        experiments[way] = server.create_experiment(EXPERIMENTS[way])
        argument = experiments[way] if way == "stock" else EXPERIMENTS[way]
        _run("support.traced_travel_agent", way, "--tracking-uri", server.uri, "--experiment", argument)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "views.json")
        arguments = ["--tracking-uri", server.uri, "--json", str(target)]
        arguments += ["--pictures", str(pictures)] if pictures else []
        _run("support.console", *arguments, *(f"{way}={number}" for way, number in experiments.items()))
        return dict(json.loads(target.read_text()))


def _run(module: str, *arguments: str) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))},
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", module, *arguments]
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def compare_views(views: Mapping[str, View]) -> dict[str, dict[str, bool]]:
    """Return by feature and way whether the console shows it."""
    return {name: {way: bool(check(views[way])) for way in WAYS} for name, check in FEATURES.items()}


def format_table(visible: Mapping[str, Mapping[str, bool]]) -> str:
    """Return the table as Markdown."""
    rows = [f"| view: element | {' | '.join(EXPERIMENTS.values())} |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {' | '.join('yes' if by_way[way] else '-' for way in WAYS)} |" for name, by_way in visible.items()
    ]
    rows += ["", "| shown only by the SDK | reason |", "|---|---|"]
    rows += [
        f"| {name} | {EXCEPTIONS.get(name, '')} |"
        for name, by_way in visible.items()
        if by_way["sdk"] and not by_way["ours"]
    ]
    return "\n".join(rows) + "\n"


def read_table() -> str:
    """Read the table of the page."""
    text = PAGE.read_text()
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder, "server"))
        try:
            views = record_views(server, Path(folder, "pictures"))
        finally:
            server.stop()
        text = PAGE.read_text()
        begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
        PAGE.write_text(text[:begin] + format_table(compare_views(views)) + text[end:])
        _copy_pictures(Path(folder, "pictures"))


def _copy_pictures(folder: Path) -> None:
    """Copy the pictures that documents show.

    Reduce them to 256 colours before they are committed, for example with pngquant: this saves two thirds of the bytes.
    """
    PICTURES.mkdir(exist_ok=True)
    for name in ("list-stock", "list-ours", "span2-stock", "span2-ours", "session-ours", "tool-calls-ours"):
        (PICTURES / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())


if __name__ == "__main__":
    main()
