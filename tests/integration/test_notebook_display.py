"""The display of `Telemetry` in a notebook, in a real browser: MLflow's own viewer shows the last trace."""

import subprocess
import sys

import pytest

from mlflow_otlp_exporter import configure, current_trace_id, span
from support.environments import ROOT
from support.mlflow_server import MLflowServer

# In a process of its own, because playwright brings an event loop. The notebook has another origin than MLflow.
BROWSER = """
import sys
from support.console import browser_page

html, notebook = sys.stdin.read(), "http://localhost:8888/notebook"
with browser_page({}) as page:
    page.route(notebook, lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(notebook)
    frame = page.frame_locator("iframe")
    for name in ("answer the question", "ask the model"):
        frame.get_by_text(name).first.wait_for()
    with page.expect_popup() as popup:
        frame.get_by_text("View in MLflow UI").click()
    popup.value.wait_for_load_state()
    print(popup.value.url)
"""


@pytest.mark.needs("chromium")
def test_notebook_display_shows_the_last_trace(mlflow_server: MLflowServer) -> None:
    telemetry = configure(tracking_uri=mlflow_server.uri, experiment="notebook", auto_instrument=False)
    with span("answer the question", kind="AGENT"), span("ask the model", kind="LLM"):
        trace_id = current_trace_id()
    done = subprocess.run(
        [sys.executable, "-c", BROWSER],
        cwd=ROOT / "tests",
        input=telemetry._repr_html_(),
        text=True,
        timeout=120,
        check=True,
        stdout=subprocess.PIPE,
    )
    assert trace_id is not None
    assert trace_id in done.stdout
