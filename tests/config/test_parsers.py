"""What users write, and what is made of it."""

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression

from mlflow_otlp_exporter._internal.config import parsers, urls

GOOD: list[tuple[Any, Any, Any]] = [
    (parsers.boolean, "TRUE", True),
    (parsers.boolean, True, True),
    (parsers.boolean, "0", False),
    (parsers.boolean, " off ", False),
    (parsers.seconds, "2.5", 2.5),
    (parsers.seconds, 10, 10.0),
    (parsers.text, " agents ", "agents"),
    (parsers.experiment_id, 77, "77"),
    (parsers.experiment_id, "0", "0"),
    (parsers.experiment_name, "42", "42"),
    (parsers.workspace, "team-a", "team-a"),
    (parsers.compression, Compression.Gzip, "gzip"),
    (parsers.compression, Compression.NoCompression, "none"),
    (parsers.compression, "Deflate", "deflate"),
    (parsers.headers, {"X-A": "1"}, {"x-a": "1"}),
    (parsers.headers, [("X-A", 1)], {"x-a": "1"}),
    (parsers.headers, [{"name": "x-a", "value": "1"}], {"x-a": "1"}),
    (parsers.headers, "api-key=a%20b, x=y=z,", {"api-key": "a b", "x": "y=z"}),
    (urls.tracking_uri, "http://localhost:5000/", "http://localhost:5000"),
    (urls.tracking_uri, "https://host/mlflow/v1/traces", "https://host/mlflow"),
    (urls.tracking_uri, "HTTP://[::1]:5000", "http://[::1]:5000"),
    (urls.tracking_uri, "https://host/mlflow#/experiments/1", "https://host/mlflow"),
    (urls.endpoint, "http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
]
BAD: list[tuple[Any, Any, str]] = [
    (parsers.boolean, "maybe", "true or false"),
    (parsers.seconds, "abc", "seconds above 0"),
    (parsers.seconds, 0, "seconds above 0"),
    (parsers.seconds, "inf", "seconds above 0"),
    (parsers.seconds, "nan", "seconds above 0"),
    (parsers.text, "  ", "not blank"),
    (parsers.text, "a\nb", "control characters"),
    (parsers.experiment_id, "agents", "experiment="),
    (parsers.experiment_id, "-1", "number"),
    (parsers.experiment_id, "²", "number"),
    (parsers.experiment_name, "x" * 501, "at most 500"),
    (parsers.workspace, "Team A", "2 to 63"),
    (parsers.workspace, "x", "2 to 63"),
    (parsers.workspace, "team-", "2 to 63"),
    (parsers.compression, "brotli", "gzip"),
    (parsers.headers, "just-a-secret", "item 1 has no '='"),
    (parsers.headers, {"x y": "1"}, "header names"),
    (parsers.headers, {"x": "a\r\nb: c"}, "printable"),
    (parsers.headers, {"x": "€"}, "latin-1"),
    (parsers.headers, [{"key": "x"}], "mapping"),
    (parsers.headers, 5, "mapping"),
    (urls.tracking_uri, "sqlite:///mlflow.db", "mlflow server --backend-store-uri"),
    (urls.tracking_uri, "postgresql+psycopg2://u:p@h/db", "database"),
    (urls.tracking_uri, "file:///tmp/mlruns", "file store"),
    (urls.tracking_uri, "./mlruns", "file store"),
    (urls.tracking_uri, Path("mlruns"), "file store"),
    (urls.tracking_uri, "databricks", "Databricks"),
    (urls.tracking_uri, "databricks://profile", "Databricks"),
    (urls.tracking_uri, "localhost:5000", "for example http://localhost:5000"),
    (urls.tracking_uri, "ftp://host", "http:// or https://"),
    (urls.tracking_uri, "http://host:port", "http://host:port or"),
    (urls.tracking_uri, "http://", "host:port"),
    (urls.endpoint, "collector:4317", "for example http://collector:4317"),
    (parsers.readable_file, "/nowhere/ca.pem", "No such file"),
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
    assert parsers.readable_file(file) == str(file)
    with pytest.raises(ValueError, match="directory"):
        parsers.readable_file(tmp_path)


def test_malformed_headers_are_not_quoted() -> None:
    with pytest.raises(ValueError, match="item 2") as raised:
        parsers.headers("a=b,planted-secret")
    assert "planted" not in str(raised.value)
