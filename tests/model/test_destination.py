"""Destinations of any text: what is in them can be sent, stored and looked up."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.model.destination import Destination, Route

TEXTS = st.none() | st.text(st.characters(codec=None, exclude_categories=()), max_size=9)


def test_lone_surrogates_are_escaped() -> None:
    assert Destination("a\ud800b", run_id="\udfff").route == Route("a\\ud800b", run_id="\\udfff")
    assert Destination(experiment="Bücher 🦜").experiment == "Bücher 🦜"
    destination = Destination().for_trace({"service.name": "a\ud800b", "mlflow.workspace": "\ud800"})
    assert destination == Destination("\\ud800", service_name="a\\ud800b")
    assert destination.headers("7") == {"x-mlflow-experiment-id": "7", "x-mlflow-workspace": "\\ud800"}


@given(st.builds(lambda texts: Destination(*texts), st.tuples(*[TEXTS] * 5)))
def test_any_text_becomes_utf_8_and_printable_headers(destination: Destination) -> None:
    for value in dataclasses.astuple(destination):
        assert value is None or value.encode().decode() == value
    headers = destination.headers(destination.experiment_id)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert dataclasses.replace(destination) == destination
