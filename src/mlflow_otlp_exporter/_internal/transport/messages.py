"""What passes between this library and a server: an answer, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlflow_otlp_exporter._internal.common.codes import MessageCode

# An answer is a few bytes, an error a few kB; 3,204 bytes is the longest that was seen (a bad time on PostgreSQL).
LONGEST_ANSWER = 65_536


@dataclass(frozen=True)
class HttpResponse:
    """What a server answered.

    Attributes:
        status: The HTTP status.
        headers: Header values by lower-case name.
        body: The body, uncompressed, as much of it as was asked for.
        complete: False if the body could not be read to its end.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = True


@dataclass(frozen=True)
class TransportError:
    """Why there is no answer.

    Attributes:
        message: What happened, for people; holds no secret.
        arrived: True if the request may have reached the server.
        credentials: True if nothing was sent for lack of a credential.
        code: Under which it is explained.
    """

    message: str
    arrived: bool = False
    credentials: bool = False
    code: MessageCode = MessageCode.INVALID_REQUEST


class Transport(Protocol):
    """What sends a request: `Connection`, or a test's stand-in."""

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float,
        longest: int = LONGEST_ANSWER,
    ) -> HttpResponse | TransportError:
        """Sends one request to the server's address followed by `path`."""
