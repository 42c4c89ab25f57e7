"""Token usage and cost that count once, although several spans of a trace state them.

Usage that must not count is kept under names that no server adds up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import MODEL_KINDS
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.trace_tree import CLIENT_SCOPES, TraceTree, TreeSpan

# pydantic-ai's own names for sums over spans, and others like them.
_RENAMED_PREFIXES = (
    ("gen_ai.usage.", "gen_ai.aggregated_usage."),
    ("llm.token_count.", "llm.aggregated_token_count."),
    ("llm.usage.", "llm.aggregated_usage."),
    ("llm.cost.", "llm.aggregated_cost."),
    ("ai.usage.", "ai.aggregated_usage."),
    ("usage.", "aggregated_usage."),
)


def count_usage_once(tree: TraceTree, response_scopes: Mapping[str, str]) -> None:
    """Mark spans whose usage other spans state as well.

    `response_scopes` maps response ids, also those of other traces, to the scopes of the instrumentations that
    described the response.
    """
    clients = [span for span in tree.current.values() if span.scope in CLIENT_SCOPES]
    if clients:
        models = tree.nearest_above(lambda span: span.kind in MODEL_KINDS and span.scope not in CLIENT_SCOPES)
        for span in clients:
            scope = response_scopes.get(span.normalized.response_id or "", span.scope)
            if scope != span.scope or span.span_id in models:
                span.counts_usage = False
    for agent in tree.current.values():
        if agent.kind is Kind.AGENT and agent.normalized.usage is not None:
            _complete_last_step(agent, next(tree.levels_below(agent), []))
    # In MLflow, a parent's usage hides that of its children, so only the lowest span that states usage counts.
    parent_ids = tree.ids_above(lambda span: span.has_usage)
    for span in tree.current.values():
        if span.has_usage and span.span_id in parent_ids:
            span.counts_usage = False


def _complete_last_step(agent: SpanState, children: Sequence[TreeSpan]) -> None:
    """Give the only model call of an agent the agent's counts, if it stands for several steps and counts the last."""
    models = [span for span in children if span.kind in MODEL_KINDS]
    usage = agent.normalized.usage
    if len(models) == 1 and isinstance(model := models[0], SpanState) and usage is not None:
        own = model.normalized.usage
        if own is not None and (own.input or 0) < (usage.input or 0) and (own.output or 0) < (usage.output or 0):
            model.normalized = model.normalized._replace(usage=usage)


def rename_usage_keys(attributes: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        for prefix, renamed_prefix in _RENAMED_PREFIXES:
            if key.startswith(prefix):
                result[renamed_prefix + key[len(prefix) :]] = value
                break
        else:
            result["operation.aggregated_cost" if key == "operation.cost" else key] = value
    return result
