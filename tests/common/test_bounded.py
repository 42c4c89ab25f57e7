"""Text of others that is no JSON, or nested too deep, is no error."""

import pytest

from mlflow_otlp_exporter._internal.common.bounded import parse_json


@pytest.mark.parametrize("text", ["", "no JSON", "[", b"\xff", "[" * 100_000, '{"a":' * 100_000])
def test_parse_json_with_other_text_returns_none(text: str | bytes) -> None:
    assert parse_json(text) is None


def test_parse_json_with_json_returns_its_value() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
