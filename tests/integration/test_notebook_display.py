"""The display of `Telemetry` in a notebook, in a real browser: MLflow's own viewer shows the last trace."""

import subprocess
import sys

import pytest

from mlflow_otlp_exporter import configure, current_trace_id, span
from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, ScriptedServer

# In a process of its own, because playwright brings an event loop.
BROWSER = """
import sys
from playwright.sync_api import sync_playwright
from support.needs import executable

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path=str(executable("chromium")), args=["--no-sandbox", "--disable-gpu"]
    )
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(60_000)
    page.goto(sys.argv[1])
    frame = page.frame_locator("iframe")
    frame.get_by_text("ask the model").first.wait_for()
    with page.expect_popup() as popup:
        frame.get_by_text("View in MLflow UI").click()
    popup.value.wait_for_load_state()
    print(popup.value.url)
    browser.close()
"""


@pytest.mark.needs("chromium")
def test_notebook_display_shows_the_last_trace(mlflow_server: MLflowServer, scripted_server: ScriptedServer) -> None:
    with configure(tracking_uri=mlflow_server.uri, experiment="notebook", auto_instrument=False) as telemetry:
        with span("answer the question", kind="AGENT"), span("ask the model", kind="LLM"):
            trace_id = current_trace_id()
        html = telemetry._repr_html_().encode()
    # A notebook has another origin than MLflow.
    scripted_server.answer(then=Answer(headers={"Content-Type": "text/html"}, body=html), path="/")
    completed = subprocess.run(
        [sys.executable, "-c", BROWSER, scripted_server.url],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert trace_id is not None
    assert trace_id in completed.stdout
