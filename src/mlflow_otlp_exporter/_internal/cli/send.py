"""`mlflow-otlp send`: send OTLP data from a file, or a test trace."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource

from mlflow_otlp_exporter._internal.cli.doctor.local_checks import RecordingLog
from mlflow_otlp_exporter._internal.cli.doctor.trace_check import create_test_spans, mlflow_trace_id_of
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.hints import add_fix, hint_for
from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.config.describe import credential_fingerprint
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.batcher import Batch, Batcher, batch_by_size
from mlflow_otlp_exporter._internal.delivery.clients import Clients, build_clients
from mlflow_otlp_exporter._internal.encoding.request_decoder import decode_request
from mlflow_otlp_exporter._internal.encoding.span_decoder import parse_json, parse_protobuf
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, encode_request
from mlflow_otlp_exporter._internal.spool.file_format import MAGIC

_PROGRESS_SECONDS = 5.0


def read_request(path: Path) -> ExportTraceServiceRequest:
    """Read a file: an OTLP request or `TracesData` in protobuf, or JSON, one or one per line."""
    try:
        content = path.read_bytes()
        if content.startswith(MAGIC):
            message = f"{path} is a request of the spool: send it with `mlflow-otlp spool flush` (--from, if the "
            message += "address or the credential has changed)"
            raise ConfigurationError(message, MessageCode.SPOOL_FILE_UNREADABLE)
        request = _parse_lines(content) if content.lstrip()[:1] in (b"{", b"[") else parse_protobuf(content)
        # Removes the fields of other signals than traces.
        request.DiscardUnknownFields()
        decode_request(request.SerializeToString())  # also raises for other content that protobuf accepts
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except ValueError as error:
        reason = f"contains no OTLP traces in protobuf or JSON: {error}"
    else:
        return request
    raise ConfigurationError(f"{path}: {reason}")


def read_file(path: Path) -> list[EncodedSpan]:
    return decode_request(read_request(path).SerializeToString())


def _parse_lines(content: bytes) -> ExportTraceServiceRequest:
    with suppress(ValueError):
        return parse_json(content)
    request = ExportTraceServiceRequest()
    for line in filter(bytes.strip, content.splitlines()):
        request.MergeFrom(parse_json(line))
    return request


def send_file(settings: Settings, path: Path, *, report_progress: bool = False) -> Iterator[tuple[bool, str]]:
    """Send the spans of a file; yield lines of output, each with whether it is a success."""
    spans = read_file(path)
    if not spans:
        raise ConfigurationError(f"{path}: contains no spans")
    clients = build_clients(settings, log := RecordingLog())
    try:
        report_at = time.monotonic() + _PROGRESS_SECONDS
        delivered, destination = 0, clients.destination.for_trace(Resource.create().attributes)
        for batch in batch_by_size(spans, settings.max_request_size, has_run=settings.run_id is not None):
            outcome = _send_batch(clients, settings, (destination, batch))
            if outcome.disposition is Disposition.SUCCESS:
                delivered += len(batch)
            else:
                yield False, _format_failure(settings, outcome)
            if report_progress and time.monotonic() >= report_at:
                report_at += _PROGRESS_SECONDS
                print(f"{delivered} of {pluralize(len(spans), 'span')} sent ...", file=sys.stderr, flush=True)
        yield from ((True, message) for message in log.messages)
        counts = f"{pluralize(len(spans), 'span')} of {pluralize(len({span.trace_id for span in spans}), 'trace')}"
        yield delivered == len(spans), f"{delivered} of {counts} delivered"
    finally:
        clients.close()


def send_test(settings: Settings) -> Iterator[tuple[bool, str]]:
    """Send a test trace, enriched, masked and sanitized like any other; yield lines like `send_file`."""
    spans = create_test_spans(Resource.create(), "mlflow-otlp send --test")
    problems: list[str] = []
    clients = build_clients(settings, log := RecordingLog())
    try:
        batcher = Batcher(
            settings,
            clients.destination,
            log,
            max_bytes=lambda: settings.max_request_size,
            on_dropped=lambda _count, _spans, _kind, reason: problems.append(
                add_code(MessageCode.SPANS_DROPPED, f"Spans dropped: {reason}")
            ),
        )
        for batch in batcher.build(spans)[0]:
            outcome = _send_batch(clients, settings, batch)
            if outcome.disposition is not Disposition.SUCCESS:
                problems.append(_format_failure(settings, outcome))
        yield from ((True, message) for message in log.messages)
        yield from ((False, problem) for problem in problems)
        if not problems:
            yield True, f"the trace {mlflow_trace_id_of(spans)} was delivered"
    finally:
        clients.close()


def _send_batch(clients: Clients, settings: Settings, batch: Batch) -> ExportOutcome:
    destination, spans = batch
    return clients.otlp.export(destination, encode_request(spans), settings.timeout)


def _format_failure(settings: Settings, outcome: ExportOutcome) -> str:
    code = outcome.code if outcome.disposition is not Disposition.PARTIAL_SUCCESS else MessageCode.PARTIAL_SUCCESS
    traces = settings.traces
    hint = hint_for(code, traces.url, traces.url_variable, has_credential=credential_fingerprint(traces) != "none")
    return add_fix(code, f"{traces.address}: {outcome.message}", hint)
