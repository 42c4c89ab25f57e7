"""The reader of Acme's spans. mlflow-otlp-exporter imports this module by the entry point; nothing else does."""

from mlflow_otlp_exporter.readers import Dialect, NormalizedSpan, Reader, SpanView, parse_texts

# One table for what attributes say as they are.
_TABLE = Dialect(
    "Acme",
    prefixes=frozenset({"acme"}),
    fields={
        "kind": ("acme.step",),
        "input": ("acme.prompt",),
        "output": ("acme.reply",),
        "request_model": ("acme.model",),
        "usage.input": ("acme.tokens.in",),
        "usage.output": ("acme.tokens.out",),
    },
)


def _read_sources(span: SpanView) -> NormalizedSpan | None:
    """Read what no table can say: a list of `file: text`."""
    sources = parse_texts(span.attributes.get("acme.sources"))
    return NormalizedSpan(metadata={"sources": [source.partition(":")[0] for source in sources]}) if sources else None


READERS: list[Dialect | Reader] = [_TABLE, Reader("Acme's sources", frozenset({"acme"}), _read_sources)]
