"""`mlflow-otlp send`: recorded OTLP from a file, or a test trace, into MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.resources import Resource

from mlflow_otlp_exporter._internal.cli.doctor.local_checks import RecordingLog
from mlflow_otlp_exporter._internal.cli.doctor.trace_check import trace_id_of, two_spans
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.hints import add_fix
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.batcher import Batch, Batcher, batch_by_size
from mlflow_otlp_exporter._internal.delivery.clients import Clients, build_clients
from mlflow_otlp_exporter._internal.delivery.otlp_client import EncodedBatch
from mlflow_otlp_exporter._internal.encoding.request_decoder import decode_request
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, encode_request
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome

_IDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


def read_file(path: Path) -> list[EncodedSpan]:
    """The spans of a file of OTLP: a request or `TracesData` in protobuf, or in JSON, one or one a line.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It is something else, or cannot be read.
    """
    try:
        content = path.read_bytes()
        data = _from_json(content) if content.lstrip()[:1] in (b"{", b"[") else TracesData.FromString(content)
        # Written anew, so that fields of signals other than traces are gone.
        data.DiscardUnknownFields()
        return decode_request(data.SerializeToString())
    except OSError as error:
        why = error.strerror or type(error).__name__
    except (DecodeError, json_format.ParseError, ValueError) as error:
        why = f"no OTLP traces, neither protobuf nor JSON ({type(error).__name__})"
    raise ConfigurationError(f"{path}: {why}")


def _from_json(content: bytes) -> TracesData:
    """OTLP's JSON, which has ids in hexadecimal, where protobuf's own mapping has Base64."""
    try:
        found = [json.loads(content)]
    except ValueError:
        found = [json.loads(line) for line in filter(bytes.strip, content.splitlines())]
    data = TracesData()
    for each in found:
        data.MergeFrom(json_format.ParseDict(_ids_as_base64(each), TracesData(), ignore_unknown_fields=True))
    return data


def _ids_as_base64(found: Any) -> Any:
    import base64  # only for JSON

    if isinstance(found, list):
        return [_ids_as_base64(each) for each in found]
    if not isinstance(found, Mapping):
        return found
    return {
        name: base64.b64encode(bytes.fromhex(value)).decode()
        if name in _IDS and isinstance(value, str)
        else _ids_as_base64(value)
        for name, value in found.items()
    }


def send_file(settings: Settings, path: Path) -> Iterator[tuple[bool, str]]:
    """Sends what is in a file.

    Args:
        settings: All settings.
        path: The file.

    Returns:
        Lines for people, each with whether it is good news.

    Raises:
        ConfigurationError: The file or a setting is wrong.
    """
    spans = read_file(path)
    if not spans:
        raise ConfigurationError(f"{path}: it holds no spans")
    clients = build_clients(settings, notes := RecordingLog())
    try:
        delivered, destination = 0, clients.destination.for_trace(Resource.create().attributes)
        for batch in batch_by_size(spans, settings.max_request_size, has_run=settings.run_id is not None):
            outcome = _attempt(clients, settings, (destination, batch))
            if outcome.disposition is Disposition.SUCCESS:
                delivered += len(batch)
            else:
                yield False, _told(settings, outcome)
        yield from ((True, said) for said in notes.said)
        traces = len({span.trace_id for span in spans})
        yield delivered == len(spans), f"{delivered} of {len(spans)} spans of {traces} traces were delivered"
    finally:
        clients.close()


def send_test(settings: Settings) -> Iterator[tuple[bool, str]]:
    """Sends a test trace, and leaves it there: enriched, masked and repaired as the settings say for any other.

    Args:
        settings: All settings.

    Returns:
        Lines for people, each with whether it is good news.

    Raises:
        ConfigurationError: A setting is wrong.
    """
    spans = two_spans(Resource.create(), "mlflow-otlp send --test")
    troubles: list[str] = []
    clients = build_clients(settings, notes := RecordingLog())
    try:
        batcher = Batcher(
            settings,
            clients.destination,
            notes,
            max_bytes=lambda: settings.max_request_size,
            on_dropped=lambda _count, _spans, _kind, reason: troubles.append(
                add_code(MessageCode.SPANS_DROPPED, f"Spans dropped: {reason}")
            ),
        )
        for batch in batcher.build(spans)[0]:
            outcome = _attempt(clients, settings, batch)
            if outcome.disposition is not Disposition.SUCCESS:
                troubles.append(_told(settings, outcome))
        yield from ((True, said) for said in notes.said)
        yield from ((False, said) for said in troubles)
        if not troubles:
            yield True, f"the trace {trace_id_of(spans)} was delivered"
    finally:
        clients.close()


def _attempt(clients: Clients, settings: Settings, batch: Batch) -> ExportOutcome:
    destination, spans = batch
    return clients.otlp.export(EncodedBatch(destination, encode_request(spans), len(spans)), settings.timeout)


def _told(settings: Settings, outcome: ExportOutcome) -> str:
    code = outcome.code if outcome.disposition is not Disposition.PARTIAL_SUCCESS else MessageCode.PARTIAL_SUCCESS
    return add_fix(code, f"{settings.traces.address}: {outcome.message}")
