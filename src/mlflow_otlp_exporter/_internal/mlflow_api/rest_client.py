"""One call of MLflow's REST API, read like an answer to spans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

# Twenty traces with previews and tags.
_LONGEST = 4 * 1024 * 1024


class RestResult(NamedTuple):
    """What came of a call.

    Attributes:
        outcome: What to do about it.
        content: The JSON object that was answered; empty if there was none.
    """

    outcome: ExportOutcome
    content: Mapping[str, Any]

    @property
    def fine(self) -> bool:
        """Whether the server did what it was asked for."""
        return self.outcome.verdict is Disposition.DELIVERED


def request_json(
    api: Transport, method: str, path: str, body: Mapping[str, Any] | None, *, workspace: str | None, seconds: float
) -> RestResult:
    """Makes a call.

    Args:
        api: MLflow's REST side.
        method: The HTTP method.
        path: The path, from `/api` on.
        body: What is sent as JSON, if anything is.
        workspace: The workspace; None for the server's default.
        seconds: How long it may take.
    """
    headers = {"content-type": "application/json", **Destination(workspace=workspace).headers(None)}
    content = b"" if body is None else json.dumps(body).encode()
    answer = api.send(
        HttpRequest(method, path, headers=headers, body=content, timeout_seconds=seconds, max_response_bytes=_LONGEST)
    )
    if not isinstance(answer, HttpResponse):
        return RestResult(classify_error(answer), {})
    try:
        found = json.loads(answer.body) if answer.is_complete else None
    except ValueError:
        found = None
    return RestResult(classify_response(answer), found if isinstance(found, dict) else {})
