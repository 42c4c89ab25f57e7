"""HTTP requests and responses as plain values, and the interface of what sends them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.model.spans import Body

# A response has a few bytes, an error a few kB; the longest that was seen has 3,204 (an invalid time on PostgreSQL).
MAX_RESPONSE_BYTES = 65_536
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class HttpRequest(NamedTuple):
    """One request to a server, whose URL the transport knows."""

    method: str
    path: str  # appended to the server's URL; may be empty
    timeout_seconds: float  # for the whole request: a response that arrives in drips is cut off then
    headers: Mapping[str, str] = _NO_HEADERS  # headers that the user configured win, except the experiment
    body: Body = b""
    max_response_bytes: int = MAX_RESPONSE_BYTES
    base_url: str | None = None  # another URL of the same server


class HttpResponse(NamedTuple):
    """The response of a server: header names in lower case, body decompressed and possibly cut."""

    status: int
    headers: Mapping[str, str] = _NO_HEADERS
    body: bytes = b""
    is_complete: bool = True  # False if the body could not be read to its end
    proxy: str = ""  # a forward proxy that may have answered instead of the server


class TransportError(NamedTuple):
    """The reason why there is no response. The message holds no secret."""

    message: str
    may_have_arrived: bool = False
    is_credential_error: bool = False  # nothing was sent, because no credential is available
    code: MessageCode = MessageCode.INVALID_REQUEST


class Transport(Protocol):
    """Sends requests: `HttpClient`, a decorator of it, or a fake in tests."""

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        """Send one request; never raises."""
