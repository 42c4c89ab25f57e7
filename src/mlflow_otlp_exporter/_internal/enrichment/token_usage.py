"""Token usage and cost that count once, although several spans of a trace state them.

Usage that must not count is kept under names that no server adds up.
"""

import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import AGENT, MODEL_KINDS, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Usage
from mlflow_otlp_exporter._internal.enrichment.readers.tables import read_usage
from mlflow_otlp_exporter._internal.enrichment.span_state import CallSummary, SpanState
from mlflow_otlp_exporter._internal.enrichment.trace_tree import CLIENT_SCOPES, TraceTree, TreeSpan
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured

# Where names of usage and cost get `aggregated_`, as pydantic-ai names sums over spans.
_USAGE_KEY = (
    r"^(?:gen_ai\.|llm\.|ai\.)?(?=usage\.)|^llm\.(?=token_count\.|cost\.)|^operation\.(?=cost$)"
    r"|^langfuse\.observation\.(?=usage_details)"
)
# Bedrock and Anthropic count cached tokens beside the input tokens; these pass their counts on as they are.
_ADDITIVE_SCOPES = (
    *("opentelemetry.instrumentation.botocore", "opentelemetry.instrumentation.bedrock"),
    "com.anthropic.claude_code",
)
_MAX_OPEN_CALLS = 16
_get_scope, _has_usage = attrgetter("scope"), attrgetter("has_usage")
# How long after a call a span may begin that repeats its usage.
MAX_DELAY_NANOS = 1_000_000_000


def include_cached_tokens(usage: Usage, scope: str, model: str | None, response: Any) -> Usage:
    """Count cached and reasoning tokens among input and output tokens, where the source counts them beside these.

    `response` may be that of the provider, which has counts that the source left out.
    """
    if usage[3:6] == (None, None, None) and usage.total == (usage.input or 0) + (usage.output or 0):
        return usage  # nothing is cached or hidden
    usage = _add_counts_of_response(usage, response)
    input_tokens, output_tokens, total = usage.input or 0, usage.output or 0, usage.total
    cached, reasoning = (usage.cache_read or 0) + (usage.cache_write or 0), usage.reasoning or 0
    beside = total - input_tokens - output_tokens if total is not None else None
    is_bedrock = "bedrock" in scope
    if cached:
        is_additive = cached > input_tokens or beside in (cached, cached + reasoning)
        is_additive = is_additive or scope.startswith(_ADDITIVE_SCOPES)
        is_additive = is_additive or (is_bedrock and beside is None)
        # Agno adds up a total of its own.
        is_additive = is_additive or (scope.endswith(".agno") and "claude" in (model or ""))
        added = cached if is_additive else 0
    else:
        added = max(beside or 0, 0) if is_bedrock else 0  # the instrumentation does not say how many were cached
    if reasoning and beside in (reasoning, cached + reasoning):
        output_tokens += reasoning
        usage = usage._replace(output=output_tokens)
    if not added:
        return usage
    input_tokens += added
    return usage._replace(input=input_tokens, total=max(total, input_tokens + output_tokens) if total else None)


def _add_counts_of_response(usage: Usage, response: Any) -> Usage:
    has_uncounted = (usage.total or 0) > (usage.input or 0) + (usage.output or 0) and not usage.cache_read
    is_priced_by_time = bool(usage.cache_write) and isinstance(response, str) and "ephemeral_1h" in response
    parsed = parse_structured(response) if has_uncounted or is_priced_by_time else None
    counts = read_usage(parsed.get("usage")) if isinstance(parsed, dict) else None
    if counts is None:
        return usage
    return usage._replace(
        cache_read=usage.cache_read or counts.cache_read or None,
        cache_write=usage.cache_write or counts.cache_write or None,
        cache_write_1h=usage.cache_write_1h or counts.cache_write_1h or None,
    )


def is_same_call(outer: CallSummary, other: CallSummary) -> bool:
    """Whether two spans with the same counts describe one call: a layer within another, or a repeated usage."""
    if outer.response_id and other.response_id:
        return outer.response_id == other.response_id
    models = (outer.model, other.model)
    if all(models) and not max(models, key=len).startswith(min(models, key=len)):
        return False
    if other.is_model:
        is_within = outer.start_time <= other.start_time and other.end_time <= outer.end_time
        return is_within and outer.scope != other.scope
    return outer.start_time <= other.start_time <= outer.end_time + MAX_DELAY_NANOS


def _count_calls_once(spans: Iterable[TreeSpan], tree: TraceTree) -> None:
    """Find the layers of a call: a framework, the provider's client below it, and siblings that repeat the usage."""
    groups: dict[tuple[int | None, int | None], list[tuple[CallSummary, TreeSpan]]] = {}
    for span in spans:
        if (call := span.call) is not None:
            groups.setdefault(call.counts, []).append((call, span))
    for calls in groups.values():
        if len(calls) < 2:
            continue
        calls.sort(key=lambda item: (item[0].start_time, not item[0].is_model, -item[0].end_time))
        open_calls: list[tuple[CallSummary, TreeSpan, set[tuple[str, bool]]]] = []
        for call, span in calls:
            layer = (call.scope, call.is_model)
            for outer, outer_span, layers in reversed(open_calls):
                if layer not in layers and is_same_call(outer, call):
                    layers.add(layer)
                    _drop_usage(outer_span, span, tree)
                    break
            else:
                if call.is_model:
                    open_calls = [*open_calls[1 - _MAX_OPEN_CALLS :], (call, span, set())]


def _drop_usage(outer: TreeSpan, other: TreeSpan, tree: TraceTree) -> None:
    """Let one of two spans of the same call count: one that was sent before, otherwise the outer one."""
    duplicate = tree.current.get(other.span_id) or tree.current.get(outer.span_id)
    if duplicate is None:
        return
    duplicate.counts_usage = duplicate.has_usage = False
    counted = outer if duplicate.span_id == other.span_id else other
    if duplicate.kind in MODEL_KINDS and counted.kind in MODEL_KINDS and duplicate.answer in (None, counted.answer):
        duplicate.kind = Kind.TASK  # a call of a model is one span in charts and chats


def count_usage_once(tree: TraceTree, response_scopes: Mapping[str, str]) -> None:
    """Mark spans whose usage other spans state as well.

    `response_scopes` maps response ids, also those of other traces, to the scopes of the instrumentations that
    described the response.
    """
    if not CLIENT_SCOPES.isdisjoint(map(_get_scope, tree.current.values())):
        clients = [span for span in tree.current.values() if span.scope in CLIENT_SCOPES]
        models = tree.nearest_above(lambda span: span.kind in MODEL_KINDS and span.scope not in CLIENT_SCOPES)
        for span in clients:
            scope = response_scopes.get(span.normalized.response_id or "", span.scope)
            if scope != span.scope or span.span_id in models:
                span.counts_usage = span.has_usage = False
    spans = [*filter(_has_usage, tree.spans.values())]
    if any(span.kind is AGENT for span in spans):
        _complete_last_steps(tree)
    _count_calls_once(spans, tree)
    # In MLflow, a parent's usage hides that of its children, so only the lowest span that states usage counts.
    for span_id in tree.ids_above(filter(_has_usage, spans)):
        if (parent := tree.current.get(span_id)) is not None and parent.has_usage:
            parent.counts_usage = parent.has_usage = False


def _complete_last_steps(tree: TraceTree) -> None:
    """Give the only model call of an agent the agent's counts, if it stands for several steps and counts the last."""
    calls: dict[int, list[TreeSpan]] = {}
    agents = tree.nearest_above(lambda span: span.kind is AGENT)
    for span in tree.spans.values():
        if span.span_id in agents and span.kind in (AGENT, *MODEL_KINDS):
            calls.setdefault(agents[span.span_id].span_id, []).append(span)
    for agent_id, (model, *others) in calls.items():
        agent = tree.current.get(agent_id)
        if agent is None or others or model.kind is AGENT or not isinstance(model, SpanState):
            continue
        usage, own = agent.normalized.usage, model.normalized.usage
        if usage and own and all((a or 0) < (b or 0) for a, b in zip(own[:2], usage[:2], strict=True)):
            model.normalized = model.normalized._replace(usage=usage)
            model.__dict__.pop("call", None)


def rename_usage_keys(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {re.sub(_USAGE_KEY, r"\g<0>aggregated_", key, count=1): value for key, value in attributes.items()}
