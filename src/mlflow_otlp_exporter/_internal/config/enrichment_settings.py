"""What is added to spans, as settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnrichmentSettings:
    """What is added to spans, and what is left out.

    Attributes:
        enrich: Whether spans are enriched.
        compact: Whether attributes are dropped whose content the added ones carry.
        rename_tools: Whether a tool's span is named like the tool.
        attachments: Whether images, sounds and files are uploaded to MLflow instead of being a part of spans.
        trace_info: Whether MLflow is told over its REST API what OTLP has no place for; None for older servers only.
    """

    enrich: bool
    compact: bool
    rename_tools: bool
    attachments: bool
    trace_info: bool | None
