"""OTLP/HTTP: `/v1/traces` in protobuf and JSON, and the endpoints for operations."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlflow_otlp_exporter._internal.gateway.intake import Intake, IsAllowed
from mlflow_otlp_exporter._internal.gateway.metrics import GatewayMetrics
from mlflow_otlp_exporter._internal.gateway.protocol import (
    PROTOBUF,
    Answer,
    AnswerKind,
    BodyFormat,
    Rejection,
    encode_http_answer,
    media_type,
    parse_body,
    read_format,
    reject_size,
)
from mlflow_otlp_exporter._internal.gateway.tokens import TokenFile

_BODY_SECONDS = 60.0
# A connection without a request in progress is closed when it has sent no whole head meanwhile.
_HEAD_SECONDS = 20.0
# Requests that are decoded at once, and bodies that are received at once, in units of the largest request.
_MAX_DECODERS, _MAX_RECEIVED_REQUESTS = 4, 4


class HttpReceiver:
    """The ASGI application `app`; the bodies of all requests together are bounded."""

    def __init__(
        self, intake: Intake, tokens: TokenFile | None, max_request_bytes: int, metrics: GatewayMetrics
    ) -> None:
        self._intake, self._tokens, self._max_bytes = intake, tokens, max_request_bytes
        self._metrics = metrics
        self._received_bytes = 0
        self._limiter = anyio.CapacityLimiter(_MAX_DECODERS)
        self.app = Starlette(
            routes=[
                Route("/v1/traces", self._export, methods=["POST"]),
                Route("/healthz", self._report_health),
                Route("/readyz", self._report_readiness),
                Route("/metrics", self._report_metrics),
            ]
        )
        self.app.router.redirect_slashes = False  # clients of OTLP do not follow redirects

    async def _report_health(self, _request: Request) -> Response:
        is_alive = self._intake.is_alive
        return PlainTextResponse("ok" if is_alive else "the thread has ended", 200 if is_alive else 503)

    async def _report_readiness(self, _request: Request) -> Response:
        reason = self._intake.unavailable_reason
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    async def _report_metrics(self, _request: Request) -> Response:
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def _export(self, request: Request) -> Response:
        try:
            is_allowed = self._tokens.authenticate(request.headers.get("authorization", "")) if self._tokens else None
            answer = await self._receive(request, read_format(request.headers), is_allowed)
        except Rejection as rejection:
            answer = rejection.answer
        except ClientDisconnect:
            answer = Answer(AnswerKind.MALFORMED, "the client closed the connection")
        client = request.client.host if request.client else "an unknown address"
        self._metrics.record_answer(answer, "http", str(answer.kind.http_status), client)
        headers, content = encode_http_answer(answer, is_json=media_type(request.headers) != PROTOBUF)
        return Response(content, answer.kind.http_status, headers)

    async def _receive(self, request: Request, body_format: BodyFormat, is_allowed: IsAllowed | None) -> Answer:
        if getattr(request.state, "is_anonymous", False):
            raise Rejection(AnswerKind.DENIED, "expected an SSL certificate of the client")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise reject_size(self._max_bytes)
        chunks: list[bytes] = []
        byte_count = 0
        try:
            with anyio.fail_after(_BODY_SECONDS):
                async for chunk in request.stream():
                    byte_count += len(chunk)
                    self._received_bytes += len(chunk)
                    if byte_count > self._max_bytes:
                        raise reject_size(self._max_bytes)
                    if self._received_bytes > _MAX_RECEIVED_REQUESTS * self._max_bytes:
                        raise Rejection(AnswerKind.UNAVAILABLE, "too many requests at once", 1)
                    chunks.append(chunk)
            headers = {name: _decode_header(value) for name, value in request.headers.items()}
            return await run_sync(self._take, b"".join(chunks), body_format, headers, is_allowed, limiter=self._limiter)
        except TimeoutError:
            raise Rejection(AnswerKind.MALFORMED, f"the body did not arrive within {_BODY_SECONDS:.0f} s") from None
        finally:
            self._received_bytes -= byte_count

    def _take(
        self, body: bytes, body_format: BodyFormat, headers: dict[str, str], is_allowed: IsAllowed | None
    ) -> Answer:
        return self._intake.take(parse_body(body, body_format, self._max_bytes), headers, is_allowed)


def _decode_header(value: str) -> str:
    """Return a header in UTF-8, in which clients send names; Starlette reads ISO-8859-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


class HttpProtocol(H11Protocol):
    """uvicorn's protocol, which closes connections that send no whole head: it has no time limit for them itself.

    Requests of clients without a certificate are marked, if the gateway has a CA for them.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.context.verify_mode is not ssl.CERT_NONE and not tls.getpeercert():
            self.app_state = {**self.app_state, "is_anonymous": True}
        self.loop.call_later(_HEAD_SECONDS, self._watch_head, None)

    def _watch_head(self, previous_cycle: Any) -> None:
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle  # None before the first request
        if cycle is previous_cycle and (cycle is None or cycle.response_complete):
            self.transport.close()
        else:
            self.loop.call_later(_HEAD_SECONDS, self._watch_head, cycle)
