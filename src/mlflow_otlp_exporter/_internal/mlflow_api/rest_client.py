"""One call of MLflow's REST API, read like an answer to spans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.mlflow_api.experiments import Destination
from mlflow_otlp_exporter._internal.transport.messages import Answer, Transport
from mlflow_otlp_exporter._internal.transport.response import Outcome, Verdict, read_answer, read_failure

# Twenty traces with previews and tags.
_LONGEST = 4 * 1024 * 1024


class Reply(NamedTuple):
    """What came of a call.

    Attributes:
        outcome: What to do about it.
        content: The JSON object that was answered; empty if there was none.
    """

    outcome: Outcome
    content: Mapping[str, Any]

    @property
    def fine(self) -> bool:
        """Whether the server did what it was asked for."""
        return self.outcome.verdict is Verdict.DELIVERED


def call(
    api: Transport, method: str, path: str, body: Mapping[str, Any] | None, *, workspace: str | None, seconds: float
) -> Reply:
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
    content = None if body is None else json.dumps(body).encode()
    answer = api.request(method, path, headers=headers, body=content, seconds=seconds, longest=_LONGEST)
    if not isinstance(answer, Answer):
        return Reply(read_failure(answer), {})
    try:
        found = json.loads(answer.body) if answer.complete else None
    except ValueError:
        found = None
    return Reply(read_answer(answer), found if isinstance(found, dict) else {})
