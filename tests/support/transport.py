"""A server without sockets, for what is given a `Transport`."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.transport.messages import HttpResponse, TransportError


class Call(NamedTuple):
    """A request.

    Attributes:
        method: Its method.
        path: Its path and query.
        headers: Its headers.
        body: Its body; empty if there is none.
        longest: How many bytes of the answer are wanted; 0 if that was not said.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    longest: int

    @property
    def workspace(self) -> str | None:
        """The workspace that it names."""
        return self.headers.get("x-mlflow-workspace")

    @property
    def json(self) -> Any:
        """What its body says."""
        return json.loads(self.body)


class FakeTransport:
    """Answers as a subclass says."""

    def answer(self, asked: Call) -> HttpResponse | TransportError:
        raise NotImplementedError

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float,
        longest: int = 0,
    ) -> HttpResponse | TransportError:
        assert seconds > 0
        return self.answer(Call(method, path, headers, body or b"", longest))


class Script(FakeTransport):
    """Answers in turn, the last one for ever.

    Attributes:
        seen: What was asked.
    """

    def __init__(self, *answers: HttpResponse | TransportError) -> None:
        self.answers, self.seen = list(answers), list[Call]()

    def answer(self, asked: Call) -> HttpResponse | TransportError:
        self.seen.append(asked)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def json_answer(status: int, found: Any) -> HttpResponse:
    """An answer in JSON, as MLflow's REST API gives it."""
    return HttpResponse(status, {"content-type": "application/json"}, json.dumps(found).encode())
