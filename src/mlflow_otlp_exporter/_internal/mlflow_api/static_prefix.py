"""MLflow under a static prefix (`--static-prefix /mlflow`): which paths are below the prefix depends on the version.

`/v1/traces` was at the root until 3.15 and is below the prefix from 3.16 on; REST calls and `/version` moved at other
times (measured on 3.6.0 to 3.17.2). If nothing exists below the prefix, the root of the same server is tried, and the
result is remembered. Spans are sent to the root only if the version of the server is known to have its endpoint there.
"""

from collections.abc import Callable
from typing import Protocol

from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH, path_prefix, without_path
from mlflow_otlp_exporter._internal.mlflow_api.server import has_traces_at_root, parse_version
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport, TransportError
from mlflow_otlp_exporter._internal.transport.response import error_code

# This many path segments identify the kind of a REST call: /api/3.0/mlflow/traces.
_FAMILY_SEGMENTS = 5


class ServerTransport(Transport, Protocol):
    """Transport to a server that accepts `HttpRequest.base_url`: `HttpClient`."""

    url: str


def is_missing(response: HttpResponse | TransportError) -> bool:
    """Whether the path does not exist; false if MLflow did not find the requested object."""
    return isinstance(response, HttpResponse) and response.status in (404, 405) and not error_code(response)


class PrefixedRestTransport:
    """MLflow's REST API, each of its paths below the prefix or at the root."""

    def __init__(self, server: ServerTransport) -> None:
        self.server = server
        self._urls: dict[str, str] = {}

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        """Send a request; if the path does not exist below the prefix, send it to the root."""
        family = "/".join(request.path.partition("?")[0].split("/")[:_FAMILY_SEGMENTS])
        prefixed_url, root_url = self.server.url, without_path(self.server.url)
        url = self._urls.get(family, prefixed_url)
        response = self.server.send(request._replace(base_url=url))
        if not is_missing(response):
            return response
        other_url = root_url if url == prefixed_url else prefixed_url
        other_response = self.server.send(request._replace(base_url=other_url))
        if isinstance(other_response, HttpResponse) and not is_missing(other_response):
            is_json = other_response.status == 200 and other_response.body[:1] == b"{"
            # Not another application at the root of the same host.
            if is_json or error_code(other_response) or parse_version(other_response):
                self._urls[family] = other_url
                return other_response
        return response


class PrefixedTracesTransport:
    """MLflow's OTLP endpoint, below the prefix or at the root.

    `is_at_root` gets a timeout in seconds, and returns None if the place is unknown; `on_moved` gets each new URL.
    """

    def __init__(
        self, server: ServerTransport, is_at_root: Callable[[float], bool | None], on_moved: Callable[[str], None]
    ) -> None:
        self._server, self._is_at_root, self._on_moved = server, is_at_root, on_moved
        self._root_url = without_path(server.url) + TRACES_PATH
        self.url = server.url

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        """Send a request; if the path does not exist, send it to where the server's version has the endpoint."""
        response = self._server.send(request._replace(base_url=self.url))
        if not is_missing(response):
            return response
        is_at_root = self._is_at_root(request.timeout_seconds)
        other_url = self.url if is_at_root is None else self._root_url if is_at_root else self._server.url
        if other_url == self.url:
            return response
        # Also back below the prefix, because an update of the server to 3.16 moves the endpoint.
        self.url = other_url
        response = self._server.send(request._replace(base_url=other_url))
        if not is_missing(response):
            self._on_moved(other_url)
        return response


def with_static_prefix(
    traces: ServerTransport, api: ServerTransport | None, on_moved: Callable[[str], None]
) -> tuple[Transport, Transport | None]:
    """Wrap the transports of a server's OTLP endpoint and REST API, if the server has a static prefix."""
    if api is None or not path_prefix(api.url) or traces.url != api.url + TRACES_PATH:
        return traces, api
    rest_api = PrefixedRestTransport(api)
    return PrefixedTracesTransport(traces, lambda timeout: has_traces_at_root(rest_api, timeout), on_moved), rest_api
