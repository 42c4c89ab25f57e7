"""Read MLflow's console in a headless Chromium: the content of an experiment, as text.

    python -m support.console --tracking-uri http://127.0.0.1:5000 --json OUT [--pictures FOLDER] NAME=EXPERIMENT_ID ...

It runs in its own process, because playwright brings an event loop.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import Locator, Page, sync_playwright

from support.needs import executable

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WIDTH, _HEIGHT = 1600, 720
_MILLISECONDS, _CHARTS_MILLISECONDS = 30_000, 1_500
# Without these, a new browser shows invitations that cover the content.
_STORED = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.detectIssues.guidanceShown_v1": "true",
}
_COLUMNS = dict.fromkeys(("trace_name", "user", "source", "cost"), True)
_NODES = "[data-testid^=timeline-tree-node]"
_CONTENT = "model-trace-explorer-content-tab"
_TOOLS = "div:has(> h4 [data-tools-expand-hint]) svg"
_ICON = "[data-testid^=span-icon] svg"

View = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="a folder for screenshots")
    parser.add_argument("experiments", nargs="+", metavar="NAME=EXPERIMENT_ID")
    arguments = parser.parse_args()
    experiments = dict(argument.split("=") for argument in arguments.experiments)
    with browser_page(experiments) as page:
        seen = {
            name: Experiment(page, arguments.tracking_uri, number, name, arguments.pictures).view()
            for name, number in experiments.items()
        }
    arguments.json.write_text(json.dumps(seen))


@contextmanager
def browser_page(experiments: Mapping[str, str], more_columns: Sequence[str] = ()) -> Iterator[Page]:
    """Open a page in a new browser, whose lists of traces show these columns in addition to the usual ones."""
    visible_columns = json.dumps({**_COLUMNS, **dict.fromkeys(more_columns, True)})
    columns = {f"mlflow.traces-v4.columns.{number}_v4": visible_columns for number in experiments.values()}
    stored = json.dumps({**_STORED, **columns})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(executable("chromium")), args=_FLAGS)
        try:
            context = browser.new_context(viewport={"width": _WIDTH, "height": _HEIGHT}, reduced_motion="reduce")
            context.set_default_timeout(_MILLISECONDS)
            context.add_init_script(f"for (const [k, v] of Object.entries({stored})) localStorage.setItem(k, v)")
            yield context.new_page()
        finally:
            browser.close()


class Experiment:
    """An experiment in the console; `name` is the prefix of its screenshots, `pictures` their folder."""

    def __init__(self, page: Page, uri: str, number: str, name: str, pictures: Path | None) -> None:
        self._page, self._uri, self._number, self._name, self._pictures = page, uri, number, name, pictures

    def view(self) -> View:
        """Read all pages."""
        infos = self._traces()
        session = infos[0].get("trace_metadata", {}).get("mlflow.trace.session", "")
        return {
            "list": self.rows(),
            "trace": self._trace(infos[0]["trace_id"]),
            "session": self._session(session),
            "tools": self._overview("tool-calls"),
            "usage": self._overview("usage"),
        }

    def _traces(self) -> list[dict[str, Any]]:
        """Return the server's traces, oldest first."""
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": self._number}}
        body = json.dumps({"locations": [place], "order_by": ["timestamp_ms ASC"]}).encode()
        request = Request(f"{self._uri}/api/3.0/mlflow/traces/search", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return list(json.load(answer)["traces"])

    def _open(self, path: str, query: str = "") -> None:
        # A change of only the fragment would keep the open page.
        self._page.goto("about:blank")
        self._page.goto(f"{self._uri}/#/experiments/{self._number}/{path}?workflowType=genai{query}")

    def _picture(self, of: str, *, height: int = _HEIGHT) -> None:
        if self._pictures is None:
            return
        self._page.mouse.move(_WIDTH - 5, _HEIGHT - 5)
        self._pictures.mkdir(parents=True, exist_ok=True)
        clip = {"x": 0.0, "y": 0.0, "width": float(_WIDTH), "height": float(height)}
        self._page.screenshot(path=self._pictures / f"{of}-{self._name}.png", clip=clip)  # type: ignore[arg-type]

    def _stable_text(self, locator: Locator) -> str:
        """Return the text of an element as soon as it no longer changes."""
        text, before = "", None
        for _ in range(60):
            text = locator.inner_text()
            if text == before:
                break
            before = text
            self._page.wait_for_timeout(400)
        return text

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the list by column, newest first."""
        self._open("traces")
        self._page.locator("[role=row] [role=cell]").first.wait_for()
        self._stable_text(self._page.locator("[role=table]"))
        names = self._page.locator("[role=columnheader]").all_inner_texts()
        rows = [row.locator("[role=cell]").all_inner_texts() for row in self._page.locator("[role=row]").all()]
        self._picture("list", height=300)
        return [dict(zip(names, row, strict=True)) for row in rows if row]

    def _trace(self, trace_id: str) -> View:
        """Read the tree of a trace, and each span after a click on it."""
        self._open("traces", f"&selectedEvaluationId={trace_id}&traceId={trace_id}")
        self._page.locator(_NODES).first.wait_for()
        nodes = self._page.locator(_NODES)
        spans = [self._span(nodes.nth(number), number) for number in range(nodes.count())]
        return {"spans": spans}

    def _span(self, node: Locator, number: int) -> View:
        lines = node.inner_text().split("\n")
        node.locator("[data-testid^=span-text-block]").click()
        view: View = {"name": lines[0], "figures": lines[1:], "text": "", "tools": [], "events": "", "images": 0}
        view["icon"] = node.locator(_ICON).first.inner_html()
        view["red"] = node.locator("[data-testid^=span-title-row]").evaluate(_IS_RED)
        # A failed span opens with its events, one without inputs and outputs with its attributes.
        self._page.get_by_role("tab", name="Attributes").wait_for()
        events, contents = (self._page.get_by_role("tab", name=name) for name in ("Events", "Inputs / Outputs"))
        if events.count():
            events.click()
            view["events"] = self._stable_text(self._page.get_by_role("tabpanel").last)
            self._picture(f"events{number}")
        if not contents.count():
            return view
        contents.click()
        content, tools = self._page.get_by_test_id(_CONTENT), self._page.locator(_TOOLS)
        content.wait_for()
        view["text"] = self._stable_text(content)
        view["images"] = content.locator("img").count()
        self._picture(f"span{number}")
        if tools.count():
            tools.click()
            view["tools"] = _between(self._stable_text(content), "Tools\n", "Inputs").split("\n")[1:]
        return view

    def _session(self, session: str) -> str:
        """Read the page of a session."""
        if not session:
            return ""
        self._open(f"chat-sessions/{session}")
        self._page.get_by_text("Turn 1").first.wait_for()
        text = self._stable_text(self._page.locator("body"))
        self._picture("session")
        return _between(text, "Turn 2", "Session assessments")

    def _overview(self, tab: str) -> str:
        """Read a page of charts."""
        self._open(f"overview/{tab}")
        self._page.get_by_text("Last 7 days").wait_for()
        self._page.wait_for_timeout(_CHARTS_MILLISECONDS)
        text = self._stable_text(self._page.locator("main").first)
        self._picture(tab)
        return text


# The name of a failed span is red.
_IS_RED = """row => [...row.querySelectorAll('*')].some(element => {
    const [red, green, blue] = getComputedStyle(element).color.match(/\\d+/g).map(Number);
    return element.innerText && red > 2 * green && red > 2 * blue;
})"""


def _between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0].strip()


if __name__ == "__main__":
    main()
