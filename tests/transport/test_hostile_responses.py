"""Responses that once froze, crashed or flooded the process: each is classified quickly, in one short clean line."""

import json
import time

import pytest

from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import HttpResponse
from mlflow_otlp_exporter._internal.transport.response import classify_response

JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}
HTML = {"content-type": "text/html"}
MAX_SECONDS = 0.5
DEEP = b"[" * 60_000
RESPONSES = {
    "spaces": HttpResponse(400, JSON, json.dumps({"message": "Invalid value: 'x" + " " * 100_000 + "y'"}).encode()),
    "quotes": HttpResponse(400, JSON, json.dumps({"message": "'\"`" * 100_000}).encode()),
    "open titles": HttpResponse(404, HTML, b"<title" * 200_000),
    "nested error": HttpResponse(500, JSON, DEEP),
    "nested success": HttpResponse(200, JSON, DEEP),
    "location is a number": HttpResponse(422, JSON, json.dumps({"detail": [{"loc": 5, "msg": "bad"}]}).encode()),
    "huge count": HttpResponse(200, JSON, json.dumps({"partialSuccess": {"rejectedSpans": "9" * 5000}}).encode()),
    "control characters": HttpResponse(302, {"location": "http://e/\x1b[2J\n2026 ERROR forged"}, b""),
    "long location": HttpResponse(302, {"location": "http://e/" + "x" * 50_000}, b""),
    "4 MB of text": HttpResponse(400, TEXT, b"LINE 1" * 700_000),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_classify_hostile_response_is_quick_and_message_is_clean(name: str) -> None:
    start = time.perf_counter()
    outcome = classify_response(RESPONSES[name])
    assert time.perf_counter() - start < MAX_SECONDS
    assert len(outcome.message) < 1000
    assert outcome.message.isprintable()


@pytest.mark.parametrize("status", [103, 500, 502, 520, 525, 530, 599])
def test_classify_informational_or_unknown_server_error_is_retryable(status: int) -> None:
    outcome = classify_response(HttpResponse(status, TEXT, b"error code"))
    assert outcome.disposition is Disposition.RETRYABLE
    assert outcome.cause is FailureKind.SERVER
