"""Google's Agent Development Kit: `gcp.vertex.agent.*`, where version 1 keeps requests and answers as JSON."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan, Usage
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import integer, structured, text

_OWN = "gcp.vertex.agent."
_MERGED = "(merged tools)"
_NOTHING = frozenset({"N/A", "<not serializable>", "{}", ""})


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads calls of models and of tools."""
    found = source.attributes
    request = structured(found.get(_OWN + "llm_request")) or {}
    response = structured(found.get(_OWN + "llm_response")) or {}
    if not isinstance(request, dict) or not isinstance(response, dict):
        return None
    content, config = response.get("content"), request.get("config")
    given = read_request(request, model=True) if request else None
    answered = read_messages([{"role": "model", **content}], "assistant") if isinstance(content, dict) else None
    reason = text(response.get("finish_reason"))
    carried = [_OWN + "llm_request"] if given else []
    carried += [_OWN + "llm_response"] if answered else []
    observation = NormalizedSpan(
        kind=Kind.CHAT_MODEL if request.get("model") else None,
        input_messages=given,
        output_messages=answered,
        input=_said(found.get(_OWN + "tool_call_args")),
        output=_said(found.get(_OWN + "tool_response")),
        tools=read_tools(config.get("tools")) if isinstance(config, dict) else None,
        usage=_usage(response.get("usage_metadata")),
        request_model=text(request.get("model")),
        provider="gemini" if str(request.get("model", "")).startswith("gemini") else None,
        finish_reason=reason.lower() if reason else None,
        session=text(found.get(_OWN + "session_id")),
        carried=tuple(carried),
    )
    return observation if any(observation) else None


def read_merged(source: SpanView) -> NormalizedSpan | None:
    """Reads the span that follows tools which ran at once: it is called a tool, and is none.

    MLflow's scorers would take it for one more call.
    """
    if source.attributes.get("gen_ai.tool.name") == _MERGED:
        return NormalizedSpan(kind=Kind.CHAIN)
    return None


def _said(value: Any) -> Any:
    return None if isinstance(value, str) and value in _NOTHING else value


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict) or integer(value.get("prompt_token_count")) is None:
        return None
    return Usage(
        integer(value.get("prompt_token_count")),
        integer(value.get("candidates_token_count")),
        cache_read=integer(value.get("cached_content_token_count")),
        reasoning=integer(value.get("thoughts_token_count")),
    )
