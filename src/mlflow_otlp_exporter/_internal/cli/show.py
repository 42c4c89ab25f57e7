"""`mlflow-otlp show`: print traces of a file, or of MLflow, as its console shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mlflow_otlp_exporter._internal.cli.doctor.local_checks import RecordingLog
from mlflow_otlp_exporter._internal.cli.doctor.trace_check import read_trace
from mlflow_otlp_exporter._internal.cli.output import paint, shorten
from mlflow_otlp_exporter._internal.cli.send import read_request
from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.hints import add_fix, hint_for
from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.config.credentials import has_credential
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.batcher import Batcher
from mlflow_otlp_exporter._internal.delivery.clients import build_clients
from mlflow_otlp_exporter._internal.encoding.span_decoder import decode_attributes, decode_spans
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import encode_request

TRACE_ID = re.compile(r"(?:tr-)?([0-9a-f]{32})")
_NAME_LENGTH, _PREVIEW_LENGTH, _MAX_DEPTH = 48, 100, 40
_NO_PARENT = ("", "0" * 16)
_TOKEN_USAGE, _COST = "mlflow.chat.tokenUsage", "mlflow.llm.cost"
_MODEL_NAMES = ("mlflow.llm.model", names.MODEL_NAME, "gen_ai.response.model", "gen_ai.request.model")
_KIND_STYLES = {"AGENT": "bold", "LLM": "cyan", "CHAT_MODEL": "cyan", "TOOL": "yellow", "RETRIEVER": "green"}
_ERROR_CODE = 2


@dataclass(frozen=True)
class ShownSpan:
    """What is shown of a span; texts as they came."""

    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    error: str | None
    inputs: str
    outputs: str
    model: str
    tokens: Mapping[str, float]
    cost: float | None
    session: str
    user: str

    @property
    def seconds(self) -> float:
        return max(0, self.end - self.start) / 1e9


@dataclass(frozen=True)
class ShownTrace:
    """The spans of a trace, by their start, and what MLflow knows about the trace."""

    trace_id: str
    spans: Sequence[ShownSpan]
    info: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the trace: its head, and each span with its content below."""
        children: dict[str, list[ShownSpan]] = {}
        span_ids = {span.span_id for span in self.spans}
        for span in self.spans:
            children.setdefault(span.parent_id if span.parent_id in span_ids else "", []).append(span)
        roots = children.get("", [])
        yield from self._head(roots[0] if roots else None)
        rows = [row for root in roots for row in _walk(root, children, "", "", 0)]
        width = max((len(prefix) + len(shorten(span.name, _NAME_LENGTH)) for span, prefix, _ in rows), default=0)
        for span, prefix, below in rows:
            name = shorten(span.name, _NAME_LENGTH)
            padding = " " * (width - len(prefix) - len(name))
            kind = paint(f"{shorten(span.kind, 12):12}", _KIND_STYLES.get(span.kind, ""))
            yield f"{prefix}{name}{padding}  {kind} {'  '.join(_facts(span))}".rstrip()
            for label, text in (("in ", span.inputs), ("out", span.outputs)):
                if text:
                    yield f"{below}  {paint(label, 'dim')} {shorten(text, _PREVIEW_LENGTH)}"

    def _head(self, root: ShownSpan | None) -> Iterator[str]:
        state = "ERROR" if root is not None and root.error is not None else "OK"
        if root is None or root.parent_id not in _NO_PARENT:
            state = "without its root"
        begin, end = min(span.start for span in self.spans), max(span.end for span in self.spans)
        counts = [_format_seconds((end - begin) / 1e9), pluralize(len(self.spans), "span")]
        tokens = {
            name: sum(span.tokens.get(name, 0) for span in self.spans) for name in ("input_tokens", "output_tokens")
        }
        facts = [*counts, *_format_usage(tokens, sum(cost for span in self.spans if (cost := span.cost)))]
        name = shorten(root.name if root is not None else "-", _NAME_LENGTH)
        yield f"{paint(name, 'bold')}  {paint(state, 'green' if state == 'OK' else 'red')}  {'  '.join(facts)}"
        details = {"trace": f"tr-{self.trace_id}"}
        metadata = _read_object(self.info.get("trace_metadata"))
        for label in ("session", "user"):
            details[label] = str(metadata.get(f"mlflow.trace.{label}") or "") or next(
                (value for span in self.spans if (value := getattr(span, label))), ""
            )
        yield "  ".join(f"{paint(label, 'dim')} {shorten(value, 80)}" for label, value in details.items() if value)
        for label, preview in (("request", "request_preview"), ("response", "response_preview")):
            if text := str(self.info.get(preview) or ""):
                yield f"{paint(label, 'dim')} {shorten(text, _PREVIEW_LENGTH)}"
        yield ""

    def as_json(self) -> dict[str, Any]:
        """Return the trace for `--json`."""
        return {
            "trace_id": f"tr-{self.trace_id}",
            "spans": [vars(span) | {"seconds": span.seconds} for span in self.spans],
        }


def _walk(
    span: ShownSpan, children: Mapping[str, Sequence[ShownSpan]], prefix: str, below: str, depth: int
) -> Iterator[tuple[ShownSpan, str, str]]:
    own = children.get(span.span_id, []) if depth < _MAX_DEPTH else []
    yield span, prefix, below + ("│ " if own else "  ")
    for index, child in enumerate(own):
        is_last = index == len(own) - 1
        yield from _walk(
            child, children, below + ("└─ " if is_last else "├─ "), below + ("   " if is_last else "│  "), depth + 1
        )


def _facts(span: ShownSpan) -> Iterator[str]:
    yield f"{_format_seconds(span.seconds):>7}"
    if span.model:
        yield shorten(span.model, 40)
    yield from _format_usage(span.tokens, span.cost)
    if span.error is not None:
        yield paint(shorten(f"ERROR {span.error}", _PREVIEW_LENGTH), "red")


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _format_usage(tokens: Mapping[str, float], cost: float | None) -> Iterator[str]:
    used, generated = (int(tokens.get(name, 0)) for name in ("input_tokens", "output_tokens"))
    if used or generated:
        yield f"{used} + {generated} tokens"
    if cost:
        yield f"${cost:.6f}".rstrip("0")


def read_traces(settings: Settings, path: Path) -> list[ShownTrace]:
    """Read the traces of a file, enriched and masked as they would be sent."""
    spans = decode_spans(read_request(path))
    log, dropped = RecordingLog(), list[str]()
    batcher = Batcher(
        settings,
        Destination(),
        log,
        max_bytes=lambda: settings.max_request_size,
        on_dropped=lambda _count, _spans, _kind, reason: dropped.append(reason),
    )
    request = ExportTraceServiceRequest()
    for _, batch in batcher.build(spans)[0]:
        request.MergeFromString(encode_request(batch))
    return group_traces(span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans)


def fetch_trace(settings: Settings, trace_id: str) -> list[ShownTrace]:
    """Read a trace from MLflow; raises ConfigurationError if it cannot be read."""
    clients = build_clients(settings, RecordingLog())
    try:
        if clients.api is None:
            raise ConfigurationError("no setting names the MLflow server: set MLFLOW_TRACKING_URI")
        result = read_trace(
            clients.api, f"tr-{trace_id}", settings.workspace, wait_seconds=0.0, timeout_seconds=settings.timeout
        )
        trace = result.content.get("trace")
        if not result.is_ok or not isinstance(trace, dict):
            server, outcome = settings.api or settings.traces, result.outcome
            is_sent = has_credential(clients.server.credentials)
            hint = hint_for(outcome.code, server.url, server.url_variable, has_credential=is_sent)
            reason = outcome.message or "an answer that is not MLflow's"
            raise ConfigurationError(add_fix(outcome.code, f"trace tr-{trace_id} cannot be read: {reason}", hint))
    finally:
        clients.close()
    items = trace.get("spans")
    info = trace.get("trace_info")
    traces = group_traces(parse_stored_spans(items if isinstance(items, list) else []))
    if not traces:
        raise ConfigurationError(f"trace tr-{trace_id} has no spans that MLflow returns (3.8 or newer does)")
    return [ShownTrace(item.trace_id, item.spans, info if isinstance(info, dict) else {}) for item in traces]


def parse_stored_spans(items: Iterable[Any]) -> Iterator[Span]:
    """Parse spans in MLflow's JSON, whose ids are in Base64."""
    for item in items:
        with suppress(json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError):
            yield json_format.ParseDict(item, Span(), ignore_unknown_fields=True)


def group_traces(spans: Iterable[Span]) -> list[ShownTrace]:
    traces: dict[str, dict[str, ShownSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id.hex(), {})[span.span_id.hex()] = _read_span(span)
    return [
        ShownTrace(trace_id, sorted(members.values(), key=lambda span: span.start))
        for trace_id, members in traces.items()
    ]


def _read_span(span: Span) -> ShownSpan:
    attributes = decode_attributes(span)
    counts = {"input_tokens": attributes.get(names.TOKENS_IN), "output_tokens": attributes.get(names.TOKENS_OUT)}
    usage, cost = _read_object(attributes.get(_TOKEN_USAGE)) or counts, _read_object(attributes.get(_COST))
    exception = next((decode_attributes(event) for event in span.events if event.name == "exception"), {})
    message = span.status.message or str(exception.get("exception.message") or exception.get("exception.type") or "")
    return ShownSpan(
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _read_text(attributes.get("mlflow.spanName")) or span.name,
        _read_text(attributes.get(names.SPAN_TYPE)) or _read_text(attributes.get(names.SPAN_KIND)) or "UNKNOWN",
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        message if span.status.code == _ERROR_CODE else None,
        _preview(attributes.get(names.SPAN_INPUTS, attributes.get(names.INPUT_VALUE))),
        _preview(attributes.get(names.SPAN_OUTPUTS, attributes.get(names.OUTPUT_VALUE))),
        next((text for name in _MODEL_NAMES if (text := _read_text(attributes.get(name)))), ""),
        {name: value for name, value in usage.items() if isinstance(value, int | float)},
        value if isinstance(value := cost.get("total_cost"), int | float) else None,
        _read_text(attributes.get(names.SESSION_ID)),
        _read_text(attributes.get(names.USER_ID)),
    )


def _read_object(value: Any) -> Mapping[str, Any]:
    content = _parse(value)
    return content if isinstance(content, dict) else {}


def _parse(value: Any) -> Any:
    """Parse JSON in a text; MLflow stores texts as JSON, too."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read_text(value: Any) -> str:
    content = _parse(value) if isinstance(value, str) and value[:1] == '"' else value
    return content if isinstance(content, str) else ""


def _preview(value: Any) -> str:
    """The words of a message list, as the console's bubbles show the last one; else the value."""
    content = _parse(value)
    if isinstance(content, str) and content[:1] in ("{", "["):  # MLflow stores a text as JSON once more
        content = _parse(content)
    if isinstance(content, dict):
        messages = content.get("messages")
        choices = content.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            messages = [choices[0].get("message")]
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            return _describe_message(messages[-1])
    if content is None or content in ("", {}, [], ()):
        return ""
    return content if isinstance(content, str) else _to_json(content)


def _describe_message(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text", f"[{part.get('type')}]")) for part in content if isinstance(part, dict))
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    called = [f"{item.get('name')}({item.get('arguments')})" for item in functions if isinstance(item, dict)]
    text = "; ".join(filter(None, (content if isinstance(content, str) else "", *called)))
    role = message.get("role")
    return f"{role}: {text}" if isinstance(role, str) and role not in ("user", "assistant") else text


def _to_json(content: Any) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return str(type(content).__name__)
