"""Telemetry as a context manager, its repr, and its display in a notebook."""

import asyncio
from collections.abc import Iterator

import pytest

from mlflow_otlp_exporter import configure, log_feedback, shutdown, span
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.setup.notebook import render
from mlflow_otlp_exporter.testing import RecordingEndpoint, recording

SECRET = "s3cr3t"


@pytest.fixture
def endpoint() -> Iterator[RecordingEndpoint]:
    with RecordingEndpoint() as server:
        yield server
        shutdown()


def test_telemetry_as_context_manager_sends_and_shuts_down(endpoint: RecordingEndpoint) -> None:
    with configure(tracking_uri=endpoint.url, auto_instrument=False) as telemetry, span("one"):
        pass
    assert telemetry.is_closed

    async def main() -> None:
        async with configure(tracking_uri=endpoint.url, auto_instrument=False) as other:
            assert other is not telemetry
            with span("two"):
                await asyncio.sleep(0)
        assert other.is_closed

    asyncio.run(main())
    assert [trace.tree for trace in endpoint.traces] == [["one"], ["two"]]


def test_repr_has_target_and_counts_and_no_secret(endpoint: RecordingEndpoint) -> None:
    uri = endpoint.url.replace("//", f"//ada:{SECRET}@")
    telemetry = configure(tracking_uri=uri, experiment="agents", workspace="team-a", auto_instrument=False)
    with span("one"):
        pass
    telemetry.flush()
    target = f"<Telemetry to {endpoint.url}, workspace 'team-a', experiment 'agents'"
    assert repr(telemetry) == f"{target}: delivered=1, spooled=0, dropped=0>"
    telemetry.shutdown()
    assert repr(telemetry) == f"{target}: delivered=1, spooled=0, dropped=0, closed>"
    assert SECRET not in telemetry._repr_html_()
    assert repr(configure(enabled=False)) == "<Telemetry to nowhere (disabled): delivered=0, spooled=0, dropped=0>"


def test_notebook_shows_links_counts_and_the_last_trace(endpoint: RecordingEndpoint) -> None:
    telemetry = configure(tracking_uri=endpoint.url, experiment="<agents>", auto_instrument=False)
    assert "<iframe" not in telemetry._repr_html_()
    with span("one") as current:
        trace_id = f"tr-{current.get_span_context().trace_id:032x}"
    html = telemetry._repr_html_()
    assert "experiment &#x27;&lt;agents&gt;&#x27;" in html
    assert "1 span delivered, 0 spooled, 0 dropped" in html
    assert f'href="{endpoint.url}/#/experiments/1/traces"' in html
    viewer = f"{endpoint.url}/static-files/lib/notebook-trace-renderer/index.html"
    assert f'<iframe src="{viewer}?trace_id={trace_id}&amp;experiment_id=1"' in html
    assert telemetry.flush().delivered == 1  # the display takes nothing from the next result


def test_notebook_does_not_embed_a_server_that_needs_credentials(endpoint: RecordingEndpoint) -> None:
    telemetry = configure(tracking_uri=endpoint.url, credentials=SECRET, auto_instrument=False)
    with span("one"):
        pass
    html = telemetry._repr_html_()
    assert "last trace</a>" in html
    assert "<iframe" not in html
    assert SECRET not in html


def test_notebook_display_of_a_workspace_names_it(endpoint: RecordingEndpoint) -> None:
    telemetry = configure(tracking_uri=endpoint.url, workspace="team-a", auto_instrument=False)
    with span("one"):
        pass
    assert "experiment_id=1&amp;workspace=team-a" in telemetry._repr_html_()


def test_render_escapes_what_others_named() -> None:
    html = render("<script>", Stats(), None, None, is_closed=True)
    assert "<script>" not in html
    assert "closed" in html


def test_log_feedback_takes_name_and_value_by_keyword() -> None:
    with recording() as recorded:
        with span("one"):
            assert log_feedback(name="helpful", value=True)
            assert log_feedback(value=4)
        assert [item["assessment_name"] for item in recorded.assessments] == ["helpful", "feedback"]
