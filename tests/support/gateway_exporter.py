"""An exporter that posts spans to a gateway process of its own, over several connections."""

import random
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH
from support.gateway import JSON, PROTOBUF, GatewayProcess, export_over_grpc
from support.otlp_bodies import encode_spans, to_json

_CONNECTIONS = 4
_PIECE_SPANS = 3


class GatewayExporter(SpanExporter):
    """Posts each batch as a whole, or in pieces of three spans in random order, as `protobuf`, `json` or `grpc`.

    `shutdown` ends the gateway, which sends all.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str], protocol: str, *, in_pieces: bool) -> None:
        self._headers, self._protocol, self._in_pieces = dict(headers), protocol, in_pieces
        self._folder = tempfile.TemporaryDirectory()
        # As MLflowSpanExporter() does by default.
        environment = {"MLFLOW_OTLP_COMPACT": "false", "MLFLOW_OTLP_NOISE": "none"}
        self._gateway = GatewayProcess(
            Path(self._folder.name), endpoint.removesuffix(TRACES_PATH), environment=environment
        ).start()
        self._random = random.Random(1)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        shuffled = list(spans)
        size = len(shuffled)
        if self._in_pieces:
            self._random.shuffle(shuffled)
            size = _PIECE_SPANS
        pieces = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            is_accepted = all(pool.map(self._post, map(encode_spans, pieces)))
        return SpanExportResult.SUCCESS if is_accepted else SpanExportResult.FAILURE

    def _post(self, body: bytes) -> bool:
        if self._protocol == "grpc":
            return not export_over_grpc(self._gateway, body, list(self._headers.items())).ByteSize()
        content, content_type = (to_json(body), JSON) if self._protocol == "json" else (body, PROTOBUF)
        reply = self._gateway.request("POST", TRACES_PATH, content, {**self._headers, "content-type": content_type})
        return reply.status == 200 and reply.body in (b"", b"{}")

    def shutdown(self) -> None:
        try:
            assert self._gateway.stop() == 0
            messages = [line["message"] for line in self._gateway.log if line["level"] != "INFO"]
            assert not messages, messages
        finally:
            self._gateway.kill()
            self._folder.cleanup()
