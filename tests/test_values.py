"""What users write, and what is made of it."""

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression

from mlflow_otlp_exporter import _address, _values

GOOD: list[tuple[Any, Any, Any]] = [
    (_values.boolean, "TRUE", True),
    (_values.boolean, True, True),
    (_values.boolean, "0", False),
    (_values.boolean, " off ", False),
    (_values.seconds, "2.5", 2.5),
    (_values.seconds, 10, 10.0),
    (_values.text, " agents ", "agents"),
    (_values.experiment_id, 77, "77"),
    (_values.experiment_id, "0", "0"),
    (_values.experiment_name, "42", "42"),
    (_values.workspace, "team-a", "team-a"),
    (_values.compression, Compression.Gzip, "gzip"),
    (_values.compression, Compression.NoCompression, "none"),
    (_values.compression, "Deflate", "deflate"),
    (_values.headers, {"X-A": "1"}, {"x-a": "1"}),
    (_values.headers, [("X-A", 1)], {"x-a": "1"}),
    (_values.headers, [{"name": "x-a", "value": "1"}], {"x-a": "1"}),
    (_values.headers, "api-key=a%20b, x=y=z,", {"api-key": "a b", "x": "y=z"}),
    (_address.tracking_uri, "http://localhost:5000/", "http://localhost:5000"),
    (_address.tracking_uri, "https://host/mlflow/v1/traces", "https://host/mlflow"),
    (_address.tracking_uri, "HTTP://[::1]:5000", "http://[::1]:5000"),
    (_address.tracking_uri, "https://host/mlflow#/experiments/1", "https://host/mlflow"),
    (_address.endpoint, "http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
]
BAD: list[tuple[Any, Any, str]] = [
    (_values.boolean, "maybe", "true or false"),
    (_values.seconds, "abc", "seconds above 0"),
    (_values.seconds, 0, "seconds above 0"),
    (_values.seconds, "inf", "seconds above 0"),
    (_values.seconds, "nan", "seconds above 0"),
    (_values.text, "  ", "not blank"),
    (_values.text, "a\nb", "control characters"),
    (_values.experiment_id, "agents", "experiment="),
    (_values.experiment_id, "-1", "number"),
    (_values.experiment_id, "²", "number"),
    (_values.experiment_name, "x" * 501, "at most 500"),
    (_values.workspace, "Team A", "2 to 63"),
    (_values.workspace, "x", "2 to 63"),
    (_values.workspace, "team-", "2 to 63"),
    (_values.compression, "brotli", "gzip"),
    (_values.headers, "just-a-secret", "item 1 has no '='"),
    (_values.headers, {"x y": "1"}, "header names"),
    (_values.headers, {"x": "a\r\nb: c"}, "printable"),
    (_values.headers, {"x": "€"}, "latin-1"),
    (_values.headers, [{"key": "x"}], "mapping"),
    (_values.headers, 5, "mapping"),
    (_address.tracking_uri, "sqlite:///mlflow.db", "mlflow server --backend-store-uri"),
    (_address.tracking_uri, "postgresql+psycopg2://u:p@h/db", "database"),
    (_address.tracking_uri, "file:///tmp/mlruns", "file store"),
    (_address.tracking_uri, "./mlruns", "file store"),
    (_address.tracking_uri, Path("mlruns"), "file store"),
    (_address.tracking_uri, "databricks", "Databricks"),
    (_address.tracking_uri, "databricks://profile", "Databricks"),
    (_address.tracking_uri, "localhost:5000", "for example http://localhost:5000"),
    (_address.tracking_uri, "ftp://host", "http:// or https://"),
    (_address.tracking_uri, "http://host:port", "http://host:port or"),
    (_address.tracking_uri, "http://", "host:port"),
    (_address.endpoint, "collector:4317", "for example http://collector:4317"),
    (_values.readable_file, "/nowhere/ca.pem", "No such file"),
]


@pytest.mark.parametrize(("parse", "written", "value"), GOOD)
def test_value_is_read(parse: Any, written: Any, value: Any) -> None:
    assert parse(written) == value


@pytest.mark.parametrize(("parse", "written", "expected"), BAD)
def test_bad_value_says_what_was_expected(parse: Any, written: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        parse(written)
    assert expected in str(raised.value)


def test_file_of_certificates_must_be_readable_now(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("x")
    assert _values.readable_file(file) == str(file)
    with pytest.raises(ValueError, match="directory"):
        _values.readable_file(tmp_path)


def test_malformed_headers_are_not_quoted() -> None:
    with pytest.raises(ValueError, match="item 2") as raised:
        _values.headers("a=b,planted-secret")
    assert "planted" not in str(raised.value)
