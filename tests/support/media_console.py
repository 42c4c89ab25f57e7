"""What MLflow's console shows of a trace's images, sounds and files, and of it in the list, in a headless Chromium.

    python -m support.media_console TRACKING_URI EXPERIMENT_ID TRACE_ID JSON SPAN=WHAT ...

It is run in a process of its own, as playwright brings an event loop.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Page, TimeoutError  # noqa: A004 - not the built-in one

from support.console import Experiment, browser_page

_NODES = "[data-testid^=timeline-tree-node]"
# Loaded: pictures have a width then, sounds a duration.
_SHOWN = """() => {
    const all = (names) => [...document.querySelectorAll(names)];
    const pictures = all("img").map(each => each.naturalWidth);
    const sounds = all("audio").map(each => each.duration || 0);
    const frames = all("iframe").filter(each => each.src.startsWith("blob:")).length;
    return [pictures, sounds, frames];
}"""
_READY = "(wanted) => JSON.stringify((" + _SHOWN + ")()) === wanted"


def main() -> None:
    """See the module; a span is given as NAME=WHAT, and what is waited for is what `_SHOWN` gives."""
    uri, experiment, trace, out, *spans = sys.argv[1:]
    with browser_page({"media": experiment}, ("run_name", "metadata")) as page:
        rows = Experiment(page, uri, experiment, "media", None).rows()
        query = f"workflowType=genai&selectedEvaluationId={trace}&traceId={trace}"
        page.goto(f"{uri}/#/experiments/{experiment}/traces?{query}")
        page.wait_for_selector(_NODES)
        seen = {name: _seen(page, name, wanted) for name, _, wanted in (each.partition("=") for each in spans)}
    Path(out).write_text(json.dumps({"spans": seen, "rows": rows}))


def _seen(page: Page, name: str, wanted: str) -> object:
    page.get_by_text(name, exact=True).first.click()
    # What is not there in time is told by what is there instead.
    with suppress(TimeoutError):
        page.wait_for_function(_READY, arg=wanted, timeout=15_000)
    return page.evaluate(_SHOWN)


if __name__ == "__main__":
    main()
