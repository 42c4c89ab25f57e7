"""Transports without sockets."""

import json
from typing import Any

from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, TransportError


def workspace_of(request: HttpRequest) -> str | None:
    """The workspace that a request names."""
    return request.headers.get("x-mlflow-workspace")


def json_of(request: HttpRequest) -> Any:
    """The JSON body of a request."""
    return json.loads(bytes(request.body))


class ScriptedTransport:
    """Returns responses in order, the last one for ever.

    Attributes:
        requests: The requests that were sent.
    """

    def __init__(self, *responses: HttpResponse | TransportError) -> None:
        self.responses, self.requests = list(responses), list[HttpRequest]()

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        self.requests.append(request)
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]


def json_response(status: int, content: Any) -> HttpResponse:
    """A response in JSON, as MLflow's REST API returns it."""
    return HttpResponse(status, {"content-type": "application/json"}, json.dumps(content).encode())
