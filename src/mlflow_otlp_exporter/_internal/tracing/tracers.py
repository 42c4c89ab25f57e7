"""The tracer of `@traced`."""

from __future__ import annotations

from opentelemetry import trace

from mlflow_otlp_exporter._internal.version import __version__

_SCOPE = "mlflow_otlp_exporter"
_chosen: trace.TracerProvider | None = None
_made: tuple[trace.TracerProvider | None, trace.Tracer | None] = (None, None)


def use_provider(provider: trace.TracerProvider | None) -> None:
    """Makes spans with this provider from now on.

    Args:
        provider: None for the global one.
    """
    global _chosen  # noqa: PLW0603 - one for the process, as the global provider is
    _chosen = provider


def tracer() -> trace.Tracer:
    """The tracer of the provider that `configure()` was given, else of the global one.

    Kept, as making one takes longer than making a span with it.
    """
    global _made  # noqa: PLW0603 - replaced as one, so that threads never see half of it
    provider = _chosen or trace.get_tracer_provider()
    known, made = _made
    if known is not provider or made is None:
        made = provider.get_tracer(_SCOPE, __version__)
        _made = (provider, made)
    return made
