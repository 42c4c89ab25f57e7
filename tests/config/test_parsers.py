"""What users write, and what is made of it."""

import os
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression

from mlflow_otlp_exporter._internal.config import parsers, urls

GOOD: list[tuple[Any, Any, Any]] = [
    (parsers.parse_boolean, "TRUE", True),
    (parsers.parse_boolean, True, True),
    (parsers.parse_boolean, "0", False),
    (parsers.parse_boolean, " off ", False),
    (parsers.parse_seconds, "2.5", 2.5),
    (parsers.parse_seconds, 10, 10.0),
    (parsers.parse_text, " agents ", "agents"),
    (parsers.parse_experiment_id, 77, "77"),
    (parsers.parse_experiment_id, "0", "0"),
    (parsers.parse_experiment_id, "00", "0"),
    (parsers.parse_experiment_id, " +07 ", "7"),
    (parsers.parse_headers, {"X-MLflow-Experiment-Id": "00", "a": "00"}, {"x-mlflow-experiment-id": "0", "a": "00"}),
    (parsers.parse_experiment_name, "42", "42"),
    (parsers.parse_workspace, "team-a", "team-a"),
    (parsers.one_of("none", "gzip", "deflate"), Compression.Gzip, "gzip"),
    (parsers.one_of("none", "gzip", "deflate"), Compression.NoCompression, "none"),
    (parsers.one_of("none", "gzip", "deflate"), "Deflate", "deflate"),
    (parsers.parse_headers, {"X-A": "1"}, {"x-a": "1"}),
    (parsers.parse_headers, [("X-A", 1)], {"x-a": "1"}),
    (parsers.parse_headers, [{"name": "x-a", "value": "1"}], {"x-a": "1"}),
    (parsers.parse_headers, "api-key=a%20b, x=y=z,", {"api-key": "a b", "x": "y=z"}),
    (urls.parse_tracking_uri, "http://localhost:5000/", "http://localhost:5000"),
    (urls.parse_tracking_uri, "https://host/mlflow/v1/traces", "https://host/mlflow"),
    (urls.parse_tracking_uri, "HTTP://[::1]:5000", "http://[::1]:5000"),
    (urls.parse_tracking_uri, "https://host/mlflow#/experiments/1", "https://host/mlflow"),
    (urls.parse_endpoint, "http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
]
BAD: list[tuple[Any, Any, str]] = [
    (parsers.parse_boolean, "maybe", "true or false"),
    (parsers.parse_seconds, "abc", "seconds above 0"),
    (parsers.parse_seconds, 0, "seconds above 0"),
    (parsers.parse_seconds, "inf", "seconds above 0"),
    (parsers.parse_seconds, "nan", "seconds above 0"),
    (parsers.parse_text, "  ", "not blank"),
    (parsers.parse_text, "a\nb", "control characters"),
    (parsers.parse_experiment_id, "agents", "experiment="),
    (parsers.parse_experiment_id, "-1", "number"),
    (parsers.parse_experiment_id, "²", "number"),
    (parsers.parse_experiment_name, "x" * 501, "at most 500"),
    (parsers.parse_workspace, "Team A", "2 to 63"),
    (parsers.parse_workspace, "x", "2 to 63"),
    (parsers.parse_workspace, "team-", "2 to 63"),
    (parsers.one_of("none", "gzip", "deflate"), "brotli", "gzip"),
    (parsers.parse_headers, "just-a-secret", "item 1 has no '='"),
    (parsers.parse_headers, {"x y": "1"}, "header names"),
    (parsers.parse_headers, {"x": "a\r\nb: c"}, "printable"),
    (parsers.parse_headers, {"x": "€"}, "latin-1"),
    (parsers.parse_headers, [{"key": "x"}], "mapping"),
    (parsers.parse_headers, 5, "mapping"),
    (urls.parse_tracking_uri, "sqlite:///mlflow.db", "mlflow server --backend-store-uri"),
    (urls.parse_tracking_uri, "postgresql+psycopg2://u:p@h/db", "database"),
    (urls.parse_tracking_uri, "file:///tmp/mlruns", "file store"),
    (urls.parse_tracking_uri, "./mlruns", "file store"),
    (urls.parse_tracking_uri, Path("mlruns"), "file store"),
    (urls.parse_tracking_uri, "databricks", "Databricks"),
    (urls.parse_tracking_uri, "databricks://profile", "Databricks"),
    (urls.parse_tracking_uri, "localhost:5000", "for example http://localhost:5000"),
    (urls.parse_tracking_uri, "ftp://host", "http:// or https://"),
    (urls.parse_tracking_uri, "http://host:port", "http://host:port or"),
    (urls.parse_tracking_uri, "http://", "host:port"),
    (urls.parse_endpoint, "collector:4317", "for example http://collector:4317"),
    (parsers.parse_readable_file, "/nowhere/ca.pem", "No such file"),
]


@pytest.mark.parametrize(("parse", "written", "value"), GOOD)
def test_parser_valid_value_returns_parsed(parse: Any, written: Any, value: Any) -> None:
    assert parse(written) == value


@pytest.mark.parametrize(("parse", "written", "expected"), BAD)
def test_parser_invalid_value_names_expected(parse: Any, written: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        parse(written)
    assert expected in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_parse_readable_file_fifo_raises(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="a FIFO, not a regular file"):
        parsers.parse_readable_file(tmp_path / "fifo")


def test_parse_readable_file_directory_raises(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("x")
    assert parsers.parse_readable_file(file) == str(file)
    with pytest.raises(ValueError, match="directory"):
        parsers.parse_readable_file(tmp_path)


def test_parse_headers_malformed_item_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="item 2") as raised:
        parsers.parse_headers("a=b,planted-secret")
    assert "planted" not in str(raised.value)
