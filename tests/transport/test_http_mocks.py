"""Exports in tests of applications, which replace HTTP by a mock."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
import vcr
from mocket import Mocket, Mocketizer
from mocket.mocks.mockhttp import Entry
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.model.spans import LARGE_TEXT_BYTES, SpanCopy
from support.scripted_server import ScriptedServer
from support.spans import make_spans

ENDPOINT = "http://collector.example:4318/v1/traces"
HEADERS = {"x-mlflow-experiment-id": "1"}
SPANS = make_spans("x" * 100_000, "y")


@pytest.fixture
def exporter() -> Iterator[MLflowSpanExporter]:
    exporter = MLflowSpanExporter(ENDPOINT, headers=HEADERS)
    yield exporter
    exporter.shutdown()


def count_spans(body: bytes | str | None) -> int:
    assert isinstance(body, bytes)
    request = ExportTraceServiceRequest.FromString(body)
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)


def test_export_under_responses_calls_the_mock(exporter: MLflowSpanExporter) -> None:
    with responses.RequestsMock() as mock:
        mock.post(ENDPOINT, status=200, body=b"")
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS
        [call] = mock.calls
    assert count_spans(call.request.body) == len(SPANS)


def test_export_of_large_text_under_responses_records_a_body_that_bytes_joins(exporter: MLflowSpanExporter) -> None:
    text = "t" * LARGE_TEXT_BYTES
    span = SpanCopy(SPANS[0], attributes={"input.value": text})
    with responses.RequestsMock() as mock:
        mock.post(ENDPOINT, status=200, body=b"")
        assert exporter.export([span]) is SpanExportResult.SUCCESS
        [call] = mock.calls
    pieces: Any = call.request.body
    assert not isinstance(pieces, bytes)
    body = bytes(pieces)  # as docs/testing.md says
    assert count_spans(body) == 1
    assert text.encode() in body


def test_export_under_responses_fails_as_the_mock_answers(exporter: MLflowSpanExporter) -> None:
    with responses.RequestsMock() as mock:
        mock.post(ENDPOINT, status=400, json={"message": "no such field"})
        assert exporter.export(SPANS[:1]) is SpanExportResult.FAILURE


def test_export_under_requests_mock_calls_the_mock(exporter: MLflowSpanExporter) -> None:
    with requests_mock.Mocker() as mock:
        mock.post(ENDPOINT, content=b"")
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS
        [request] = mock.request_history
    assert count_spans(request.body) == len(SPANS)


def test_export_without_experiment_under_mock_sends_spans_at_once() -> None:
    with responses.RequestsMock() as mock:  # raises a connection error for the lookup of the experiment
        mock.post(ENDPOINT, status=200, body=b"")
        mock.post(ENDPOINT, body=requests.ConnectionError("reset"))
        mock.post(ENDPOINT, status=200, body=b"")
        exporter = MLflowSpanExporter(ENDPOINT)
        for _ in range(2):
            assert exporter.export(SPANS) is SpanExportResult.SUCCESS
        exporter.shutdown()
        bodies = [call.request.body for call in mock.calls if call.request.method == "POST"]
    assert [count_spans(body) for body in bodies] == [len(SPANS)] * 3


def test_export_under_mocket_calls_the_mock(exporter: MLflowSpanExporter) -> None:
    with Mocketizer():
        Entry.single_register(Entry.POST, ENDPOINT, status=200)
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS
        [request] = Mocket.request_list()
    assert (request.method, request.path) == ("POST", "/v1/traces")


def test_export_under_vcr_records_and_replays(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    counts = []
    for mode in ("once", "none"):
        exporter = MLflowSpanExporter(scripted_server.traces_url, headers=HEADERS)
        with vcr.use_cassette(str(tmp_path / "cassette.yaml"), record_mode=mode) as cassette:
            assert exporter.export(SPANS) is SpanExportResult.SUCCESS
            counts.append((len(cassette), cassette.play_count))
        exporter.shutdown()
    assert counts == [(1, 0), (1, 1)]
    assert len(scripted_server.requests) == 1


def test_export_before_cassette_does_not_bypass_it(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, headers=HEADERS)
    assert exporter.export(SPANS) is SpanExportResult.SUCCESS
    with vcr.use_cassette(str(tmp_path / "cassette.yaml")) as cassette:
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS
        assert len(cassette) == 1
    exporter.shutdown()
    assert len(scripted_server.requests) == 2
