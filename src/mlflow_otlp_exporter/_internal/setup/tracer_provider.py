"""The tracer provider of the pipeline: the application's own, or a new one."""

from __future__ import annotations

import inspect
import os

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import logger

# OpenTelemetry's default is 128, and a span drops its first attributes first: a conversation of 30 messages loses the
# kind of its span.
_MAX_ATTRIBUTE_COUNT = 10_000
_LIMIT_VARIABLES = ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT")


def resolve_provider(argument: TracerProvider | None, service_name: str | None) -> tuple[TracerProvider, str]:
    """Return the tracer provider to use, and its origin for the log.

    The provider is the argument, else the global one, else a new one that becomes the global one.
    """
    provider = unwrap_provider(argument if argument is not None else trace.get_tracer_provider())
    if isinstance(provider, TracerProvider):
        current_name = provider.resource.attributes.get(SERVICE_NAME)
        if service_name and current_name != service_name:
            logger.warning(
                "service_name=%r is ignored: the tracer provider already has service.name=%r. [%s]",
                service_name,
                current_name,
                MessageCode.SERVICE_NAME_IGNORED,
            )
        return provider, "argument tracer_provider=" if argument is not None else "the application's"
    if argument is not None or not isinstance(provider, trace.ProxyTracerProvider):
        origin = "tracer_provider=" if argument is not None else "the global tracer provider"
        raise ConfigurationError(
            f"{origin} is a {type(provider).__module__}.{type(provider).__qualname__}: expected a TracerProvider of "
            "opentelemetry-sdk, because only that one accepts span processors",
            MessageCode.TRACER_PROVIDER,
        )
    # Resource.create() adds OTEL_RESOURCE_ATTRIBUTES and the detectors of OTEL_EXPERIMENTAL_RESOURCE_DETECTORS.
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else None)
    has_limit = any(os.environ.get(name, "").strip() for name in _LIMIT_VARIABLES)
    limits = SpanLimits() if has_limit else SpanLimits(max_span_attributes=_MAX_ATTRIBUTE_COUNT)
    created = TracerProvider(resource=resource, span_limits=limits)
    trace.set_tracer_provider(created)
    return created, "new"


def add_processor(provider: TracerProvider, processor: SpanProcessor) -> None:
    add = provider.add_span_processor
    # Phoenix's provider otherwise removes its own exporter when a processor is added.
    if "replace_default_processor" in inspect.signature(add).parameters:
        add(processor, replace_default_processor=False)  # type: ignore[call-arg]
    else:
        add(processor)


def unwrap_provider(provider: object) -> object:
    """Return the SDK's provider behind a wrapper such as logfire's, else the provider itself."""
    wrapped = getattr(provider, "provider", None)
    return wrapped if not isinstance(provider, TracerProvider) and isinstance(wrapped, TracerProvider) else provider
