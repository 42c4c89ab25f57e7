"""One request to MLflow's REST API, whose response is classified like a response to spans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

# Twenty traces with previews and tags.
_MAX_RESPONSE_BYTES = 4 * 1024 * 1024


class RestResult(NamedTuple):
    """Outcome of a request, and the JSON object of the response; empty if there is none."""

    outcome: ExportOutcome
    content: Mapping[str, Any]

    @property
    def is_ok(self) -> bool:
        """Whether the server did what it was asked for."""
        return self.outcome.disposition is Disposition.SUCCESS


def request_json(
    api: Transport,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    *,
    workspace: str | None,
    timeout_seconds: float,
) -> RestResult:
    """Send a JSON body, if there is one, to a path from `/api` on; `workspace=None` is the server's default."""
    request = HttpRequest(
        method,
        path,
        headers={"content-type": "application/json", **Destination(workspace=workspace).headers(None)},
        body=b"" if body is None else json.dumps(body).encode(),
        timeout_seconds=timeout_seconds,
        max_response_bytes=_MAX_RESPONSE_BYTES,
    )
    response = api.send(request)
    if not isinstance(response, HttpResponse):
        return RestResult(classify_error(response), {})
    try:
        content = json.loads(response.body) if response.is_complete else None
    except (ValueError, RecursionError):
        content = None
    return RestResult(classify_response(response), content if isinstance(content, dict) else {})
