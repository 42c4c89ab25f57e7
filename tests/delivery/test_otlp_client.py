"""One POST: experiment, headers, compression."""

import gzip
import itertools
import time
import zlib

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient, compress
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition
from mlflow_otlp_exporter._internal.model.spans import LARGE_TEXT_BYTES, LargeBody
from mlflow_otlp_exporter._internal.transport.http_types import MAX_RESPONSE_BYTES, HttpResponse
from support.transport import ScriptedTransport

LARGE = b"body" * 1000
REQUEST = Destination(experiment_id="1"), b"body"


def make_client(
    script: ScriptedTransport, compression: str = "none", *, is_set: bool = False
) -> tuple[OTLPClient, ProblemLog]:
    problem_log = ProblemLog()
    experiments = ExperimentResolver(None, certain=False, create=False, problem_log=problem_log)
    client = OTLPClient(script, experiments, compression=compression, problem_log=problem_log, experiment_is_set=is_set)
    return client, problem_log


def test_export_sends_headers_of_destination() -> None:
    script = ScriptedTransport(HttpResponse(200))
    client, problem_log = make_client(script, "gzip")
    client.export(Destination("w", experiment_id="1", run_id="r"), LARGE, 10)
    [request] = script.requests
    assert (request.method, request.path, request.max_response_bytes) == ("POST", "", MAX_RESPONSE_BYTES)
    assert request.headers == {
        "content-type": "application/x-protobuf",
        "Content-Encoding": "gzip",
        "x-mlflow-experiment-id": "1",
        "x-mlflow-workspace": "w",
        "x-mlflow-run-id": "r",
    }
    assert problem_log.stats.snapshot().requests == 1


def test_export_keeps_experiment_header_of_user() -> None:
    script = ScriptedTransport(HttpResponse(200))
    make_client(script, is_set=True)[0].export(Destination(experiment="by name"), b"body", 10)
    assert [request.headers for request in script.requests] == [{"content-type": "application/x-protobuf"}]


def test_export_compresses_small_body() -> None:
    script = ScriptedTransport(HttpResponse(200))
    make_client(script, "gzip")[0].export(*REQUEST, 10)
    [request] = script.requests
    assert request.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(bytes(request.body)) == REQUEST[1]


@pytest.mark.parametrize("status", [400, 415])
def test_export_disables_compression_after_rejection(status: int, caplog: pytest.LogCaptureFixture) -> None:
    script = ScriptedTransport(HttpResponse(status), HttpResponse(200))
    client, _ = make_client(script, "gzip")
    for _ in range(2):
        assert client.export(REQUEST[0], LARGE, 10).disposition is Disposition.SUCCESS
    assert ["Content-Encoding" in request.headers for request in script.requests] == [True, False, False]
    assert caplog.text.count("sent uncompressed from now on") == 1


def test_export_keeps_compression_if_uncompressed_body_is_rejected() -> None:
    script = ScriptedTransport(HttpResponse(400))
    client, _ = make_client(script, "gzip")
    for _ in range(2):
        assert client.export(REQUEST[0], LARGE, 10).disposition is Disposition.PERMANENT
    assert ["Content-Encoding" in request.headers for request in script.requests] == [True, False, True, False]


@pytest.mark.parametrize(
    ("seconds", "status", "interval"),
    [(0.02, 200, 0.1), (0.1, 200, 0.5), (3.0, 200, 2.0), (0.02, 503, 2.0), (0.02, 400, 0.1), (0.02, 413, 0.1)],
)
def test_batch_interval_is_five_response_times_or_two_seconds(
    seconds: float, status: int, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = make_client(ScriptedTransport(HttpResponse(status)))
    monkeypatch.setattr(time, "monotonic", itertools.count(0.0, seconds).__next__)
    for _ in range(20):
        client.export(*REQUEST, 10)
    assert client.batch_interval_seconds == pytest.approx(interval, rel=0.01)


def test_batch_interval_forgets_one_slow_response(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = make_client(ScriptedTransport(HttpResponse(200)))
    for seconds in (8.0, 0.02):
        monkeypatch.setattr(time, "monotonic", itertools.count(0.0, seconds).__next__)
        client.export(*REQUEST, 10)
    assert client.batch_interval_seconds < 0.5


def test_compress_is_reversible() -> None:
    assert gzip.decompress(compress(b"body", "gzip")) == b"body"
    assert zlib.decompress(compress(b"body", "deflate")) == b"body"
    assert (
        gzip.decompress(compress(LargeBody([b"a", b"b" * LARGE_TEXT_BYTES]), "gzip")) == b"a" + b"b" * LARGE_TEXT_BYTES
    )
