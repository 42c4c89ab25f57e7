"""Destinations of any text: what is in them can be sent, stored and looked up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.model.destination import Destination, Route, plain_experiment_id

TEXTS = st.none() | st.text(st.characters(codec=None, exclude_categories=()), max_size=9)


def test_lone_surrogates_are_escaped() -> None:
    assert Destination("a\ud800b", run_id="\udfff").route == Route("a\\ud800b", run_id="\\udfff")
    assert Destination(experiment="Bücher 🦜").experiment == "Bücher 🦜"
    destination = Destination().for_trace({"service.name": "a\ud800b", "mlflow.workspace": "\ud800"})
    assert destination == Destination("\\ud800", service_name="a\\ud800b")
    assert destination.headers("7") == {"x-mlflow-experiment-id": "7", "x-mlflow-workspace": "\\ud800"}


def test_control_characters_are_escaped_and_long_names_are_cut() -> None:
    destination = Destination("a\n\x1b[2J\u2028b", "e\0", run_id="r" * 100_000, service_name="s\x85")
    assert destination == Destination("a\\n\\x1b[2J\\u2028b", "e\\x00", run_id="r" * 500, service_name="s\\x85")
    assert len(Destination(experiment="\ud800" * 100_000).experiment or "") <= 500


@given(st.builds(lambda texts: Destination(*texts), st.tuples(*[TEXTS] * 6)))
def test_any_text_becomes_utf_8_and_printable_headers(destination: Destination) -> None:
    for value in destination:
        assert value is None or value.encode().decode() == value
    headers = destination.headers(destination.experiment_id)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert destination._replace() == destination


@pytest.mark.parametrize(
    ("experiment_id", "plain"),
    [
        ("0", "0"),
        ("00", "0"),
        ("+0", "0"),
        ("007", "7"),
        ("+12", "12"),
        ("0" * 9000, "0"),
        ("name", "name"),
        ("-1", "-1"),
        ("+", "+"),
        ("", ""),
        ("\u0660", "\u0660"),
    ],
)
def test_plain_experiment_id_returns_shortest_form_of_numbers(experiment_id: str, plain: str) -> None:
    assert plain_experiment_id(experiment_id) == plain


@pytest.mark.parametrize("value", ["00", "+0", 0, " 0 "])
def test_destination_with_experiment_id_uses_plain_form(value: object) -> None:
    assert Destination().for_trace({}, Route(experiment_id=str(value).strip())) == Destination(experiment_id="0")
    assert Destination("w").for_trace({"mlflow.experiment_id": value}) == Destination("w", None, "0")
