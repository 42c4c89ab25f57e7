"""Read the images, audio and files of a trace, and its row in the list, in MLflow's console in a headless Chromium.

    python -m support.media_console TRACKING_URI EXPERIMENT_ID TRACE_ID JSON SPAN=EXPECTED ...

It runs in its own process, because playwright brings an event loop.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Page, TimeoutError  # noqa: A004 - not the built-in one

from support.console import Experiment, browser_page

_NODES = "[data-testid^=timeline-tree-node]"
# Loaded pictures have a width, loaded audio has a duration.
_READ_MEDIA = """() => {
    const all = (names) => [...document.querySelectorAll(names)];
    const pictures = all("img").map(image => image.naturalWidth);
    const sounds = all("audio").map(audio => audio.duration || 0);
    const frames = all("iframe").filter(frame => frame.src.startsWith("blob:")).length;
    return [pictures, sounds, frames];
}"""
_READY = "(expected) => JSON.stringify((" + _READ_MEDIA + ")()) === expected"


def main() -> None:
    """Read the spans NAME=EXPECTED; EXPECTED is the awaited result of `_READ_MEDIA`."""
    uri, experiment, trace, out, *spans = sys.argv[1:]
    with browser_page({"media": experiment}, ("run_name", "metadata")) as page:
        rows = Experiment(page, uri, experiment, "media", None).rows()
        query = f"workflowType=genai&selectedEvaluationId={trace}&traceId={trace}"
        page.goto(f"{uri}/#/experiments/{experiment}/traces?{query}")
        page.wait_for_selector(_NODES)
        media = {
            name: _read_span(page, name, expected) for name, _, expected in (span.partition("=") for span in spans)
        }
    Path(out).write_text(json.dumps({"spans": media, "rows": rows}))


def _read_span(page: Page, name: str, expected: str) -> object:
    page.get_by_text(name, exact=True).first.click()
    # After a time-out, the test compares the actual media.
    with suppress(TimeoutError):
        page.wait_for_function(_READY, arg=expected, timeout=15_000)
    return page.evaluate(_READ_MEDIA)


if __name__ == "__main__":
    main()
