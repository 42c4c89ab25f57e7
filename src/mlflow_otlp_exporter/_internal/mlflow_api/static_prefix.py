"""MLflow under a static prefix (`--static-prefix /mlflow`): which of its paths lie below it differs by version.

`/v1/traces` was at the root until 3.15 and is below the prefix from 3.16 on; REST calls and `/version` moved at other
times (measured on 3.6.0 to 3.17.2). Where nothing is found below the prefix, the root of the same server is looked at,
and what is found is remembered. Spans go to the root only when the server is known to be one that has them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH, path_prefix, without_path
from mlflow_otlp_exporter._internal.mlflow_api.server import read_version, traces_at_root
from mlflow_otlp_exporter._internal.transport.messages import LONGEST_ANSWER, HttpResponse, Transport, TransportError
from mlflow_otlp_exporter._internal.transport.response import error_code

# As many segments of a path tell what a REST call is about: /api/3.0/mlflow/traces.
_SEGMENTS = 5


class PrefixedTransport(Protocol):
    """A server whose address can be another one for a request: `Connection`."""

    url: str

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float,
        longest: int = LONGEST_ANSWER,
        base: str | None = None,
    ) -> HttpResponse | TransportError:
        """Sends one request to `base`, or else to the server's address, followed by `path`."""


def is_missing(answer: HttpResponse | TransportError) -> bool:
    """Whether there is nothing at that path; not whether MLflow has not found what was asked for."""
    return isinstance(answer, HttpResponse) and answer.status in (404, 405) and not error_code(answer)


class PrefixedRestTransport:
    """MLflow's REST side, each of its paths below the prefix or at the root.

    Args:
        server: The server; its address has the prefix.

    Attributes:
        server: The same.
    """

    def __init__(self, server: PrefixedTransport) -> None:
        self.server = server
        self._found: dict[str, str] = {}

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
        """Sends one request, and again to the root where there is nothing below the prefix."""

        def ask(base: str) -> HttpResponse | TransportError:
            return self.server.request(
                method, path, headers=headers, body=body, seconds=seconds, longest=longest, base=base
            )

        family = "/".join(path.partition("?")[0].split("/")[:_SEGMENTS])
        known = self._found.get(family)
        answer = ask(known or self.server.url)
        if not is_missing(answer):
            return answer
        here, root = self.server.url, without_path(self.server.url)
        other = root if known in (None, here) else here
        elsewhere = ask(other)
        if isinstance(elsewhere, HttpResponse) and not is_missing(elsewhere) and _is_rest(elsewhere):
            self._found[family] = other
            return elsewhere
        return answer


def _is_rest(answer: HttpResponse) -> bool:
    """Whether MLflow may have answered so; not another app that has the root of the same host."""
    return bool(error_code(answer) or read_version(answer)) or (answer.status == 200 and answer.body[:1] == b"{")


class PrefixedTracesTransport:
    """MLflow's OTLP endpoint, below the prefix or at the root.

    Args:
        server: The server; its address has the prefix, and ends with `/v1/traces`.
        at_root: Whether a server of this version has it at the root; given the seconds to find out. None: not known.
        tell: Called with the address where it is found, each time that changes.
    """

    def __init__(
        self, server: PrefixedTransport, at_root: Callable[[float], bool | None], tell: Callable[[str], None]
    ) -> None:
        self._server, self._at_root, self._tell = server, at_root, tell
        self._root = without_path(server.url) + TRACES_PATH
        self.url = server.url

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
        """Sends one request; where there is nothing, asks for the version, and sends it to where that one has it."""

        def ask() -> HttpResponse | TransportError:
            return self._server.request(
                method, path, headers=headers, body=body, seconds=seconds, longest=longest, base=self.url
            )

        answer = ask()
        if not is_missing(answer):
            return answer
        at_root = self._at_root(seconds)
        other = self.url if at_root is None else self._root if at_root else self._server.url
        if other == self.url:
            return answer
        # Also back again, as a server that is updated to 3.16 moves it.
        self.url = other
        answer = ask()
        if not is_missing(answer):
            self._tell(other)
        return answer


def with_static_prefix(
    traces: PrefixedTransport, api: PrefixedTransport | None, tell: Callable[[str], None]
) -> tuple[Transport, Transport | None]:
    """The OTLP endpoint and the REST side of one server, wherever they lie; as they are if there is no prefix.

    Args:
        traces: The OTLP endpoint.
        api: The REST side; None if it is not certain that there is one.
        tell: Called with the address where the OTLP endpoint is found, if that is not its own.
    """
    if api is None or not path_prefix(api.url) or traces.url != api.url + TRACES_PATH:
        return traces, api
    rest = PrefixedRestTransport(api)
    return PrefixedTracesTransport(traces, lambda seconds: traces_at_root(rest, seconds), tell), rest
