"""Readers of conventions, for packages that ship their own: experimental.

A framework whose spans have attributes of its own describes them in its own package, and registers the reader:

```toml
[project.entry-points."mlflow_otlp_exporter.readers"]
acme = "acme_tracing.mlflow:READERS"
```

The entry point is a `Reader`, a `Dialect`, or a list of them. It is loaded when the first span is enriched.

The names of this module may change in a minor release; the changelog lists such changes under "Readers". `VERSION` is
raised by each change that is not compatible.
"""

from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    Cost,
    Document,
    Message,
    NormalizedSpan,
    Part,
    Prompt,
    ToolCall,
    ToolDefinition,
    Usage,
)
from mlflow_otlp_exporter._internal.enrichment.readers.base import EventView, Reader, SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.readers.openinference import read_documents
from mlflow_otlp_exporter._internal.enrichment.readers.tables import (
    Dialect,
    read_cost,
    read_dialect,
    read_usage,
    table_reader,
)
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    parse_float,
    parse_int,
    parse_structured,
    parse_text,
    parse_texts,
)

VERSION = 1

__all__ = [
    "VERSION",
    "Cost",
    "Dialect",
    "Document",
    "EventView",
    "Kind",
    "Message",
    "NormalizedSpan",
    "Part",
    "Prompt",
    "Reader",
    "SpanView",
    "ToolCall",
    "ToolDefinition",
    "Usage",
    "parse_float",
    "parse_int",
    "parse_structured",
    "parse_text",
    "parse_texts",
    "read_cost",
    "read_dialect",
    "read_documents",
    "read_messages",
    "read_tools",
    "read_usage",
    "table_reader",
    "unflatten",
]
