"""The tracer provider: the app's own is joined, else one is made."""

from __future__ import annotations

import inspect
import os

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import logger

# OpenTelemetry's default is 128, and the first attributes of a span are the first to go: a conversation of 30 messages
# loses the kind of its span.
_ATTRIBUTES = 10_000
_LIMITS = ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT")


def provider_to_use(given: TracerProvider | None, service_name: str | None) -> tuple[TracerProvider, str]:
    """The provider to send the spans of.

    Args:
        given: The one that the caller wants; None for the global one, or a new one, which becomes the global one.
        service_name: The `service.name` of a new one.

    Returns:
        The provider, and where it comes from, for people.

    Raises:
        ConfigurationError: It takes no span processor.
    """
    found = sdk_provider(given if given is not None else trace.get_tracer_provider())
    if isinstance(found, TracerProvider):
        ours = found.resource.attributes.get(SERVICE_NAME)
        if service_name and ours != service_name:
            said = "service_name=%r is not used: the tracer provider has service.name=%r [%s]"
            logger.warning(said, service_name, ours, MessageCode.SERVICE_NAME_IGNORED)
        return found, "the tracer provider that was given" if given is not None else "the app's tracer provider, joined"
    if given is not None or not isinstance(found, trace.ProxyTracerProvider):
        where = "tracer_provider=" if given is not None else "the global tracer provider"
        raise ConfigurationError(
            f"{where} is a {type(found).__module__}.{type(found).__qualname__}: expected a TracerProvider of "
            "opentelemetry-sdk, as no other lets a span processor be added",
            MessageCode.TRACER_PROVIDER,
        )
    # With OTEL_RESOURCE_ATTRIBUTES and the detectors of OTEL_EXPERIMENTAL_RESOURCE_DETECTORS.
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else None)
    limited = any(os.environ.get(name, "").strip() for name in _LIMITS)
    limits = SpanLimits() if limited else SpanLimits(max_span_attributes=_ATTRIBUTES)
    provider = TracerProvider(resource=resource, span_limits=limits)
    trace.set_tracer_provider(provider)
    return provider, "a new tracer provider"


def add_processor(provider: TracerProvider, processor: SpanProcessor) -> None:
    """Adds a span processor beside those that are there.

    Phoenix's provider takes its own exporter away when another processor is added, unless told not to.
    """
    add = provider.add_span_processor
    if "replace_default_processor" in inspect.signature(add).parameters:
        add(processor, replace_default_processor=False)  # type: ignore[call-arg]
    else:
        add(processor)


def sdk_provider(provider: object) -> object:
    """The SDK's provider behind one that wraps it, as that of logfire does; else the provider itself."""
    inner = getattr(provider, "provider", None)
    return inner if not isinstance(provider, TracerProvider) and isinstance(inner, TracerProvider) else provider
