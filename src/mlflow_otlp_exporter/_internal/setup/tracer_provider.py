"""The tracer provider of the pipeline: the application's own, or a new one."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError, must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, logger

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.config.models import AppSettings

# OpenTelemetry's default is 128, and a span drops its first attributes first: a conversation of 30 messages loses the
# kind of its span.
_MAX_ATTRIBUTE_COUNT = 10_000
_NOT_SAMPLED = (
    "A caller did not sample its trace (traceparent with flag 00), so its spans are not recorded; stats() counts such "
    "calls, MLFLOW_OTLP_IGNORE_CALLER_SAMPLING=true records them"
)
_DROP = Decision.DROP
# Samplers that decide by the trace id alone, or not at all, by their descriptions.
_SAMPLERS_BY_ID = ("AlwaysOnSampler", "AlwaysOffSampler", "TraceIdRatioBased{")
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


def log_disabled(arguments: Mapping[str, Any]) -> None:
    """Log which setting disables the export; `arguments` are those of the application."""
    from mlflow_otlp_exporter._internal.config.resolver import find_enabled_source

    source = find_enabled_source(arguments)
    logger.info("Export to MLflow is disabled by %s. [%s]", source, MessageCode.EXPORT_DISABLED)


def describe_sampler(provider: object) -> str:
    """Describe a provider's sampler and its source for the log; empty for OpenTelemetry's default."""
    if not isinstance(provider, TracerProvider):
        return ""
    try:
        description = str(provider.sampler.get_description())
        default: Sampler = DEFAULT_ON
        if description == default.get_description():
            return ""
        is_from_environment = description == create_environment_sampler().get_description()
    except BaseException as error:
        if must_propagate(error):
            raise
        description, is_from_environment = type(provider.sampler).__name__, False
    root = re.match(r"ParentBased{root:([^,]{1,100}),", description)
    source = "environment variable OTEL_TRACES_SAMPLER" if is_from_environment else "of the tracer provider"
    return f"{root[1] if root else description[:100]} ({source})"


def create_environment_sampler() -> Sampler:
    """Return the sampler of `OTEL_TRACES_SAMPLER`, which providers have by default."""
    return TracerProvider(resource=Resource({}), shutdown_on_exit=False).sampler


def can_sample(sampler: Sampler, *, all_traces: bool = False) -> bool:
    """Return whether a sampler records any trace without caller, or all: samplers compare the id with a bound."""
    try:
        if not sampler.get_description().removeprefix("ParentBased{root:").startswith(_SAMPLERS_BY_ID):
            return True  # it may decide by names or attributes
        return sampler.should_sample(Context(), (1 << 64) - 1 if all_traces else 0, "").decision is not _DROP
    except BaseException as error:
        if must_propagate(error):
            raise
        return True


class CallerSampler(Sampler):
    """The sampler of a provider, and what happens to spans whose caller did not sample its trace.

    OpenTelemetry's default sampler drops such spans, which then reach no processor.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.wrapped_sampler, self._ask = sampler, sampler.should_sample
        self.ignores_caller, self.dropped_root_count = False, 0
        self.on_unsampled: Callable[[], None] = lambda: None

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Ask the provider's sampler, again as for a root if it dropped the span and the caller is ignored."""
        # Every span of the application pays for this call.
        result = self._ask(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not _DROP:
            return result
        caller = trace.get_current_span(parent_context).get_span_context()
        if not (caller.is_valid and caller.is_remote) or caller.trace_flags.sampled:
            self.dropped_root_count += not caller.is_valid
            return result
        if not self.ignores_caller:
            self.on_unsampled()
            return result
        # ParentBased asks its root sampler, which may sample by trace id.
        no_parent = trace.set_span_in_context(trace.INVALID_SPAN, parent_context)
        result = self._ask(no_parent, trace_id, name, kind, attributes, links, trace_state)
        return SamplingResult(result.decision, result.attributes, result.trace_state or caller.trace_state or None)

    def get_description(self) -> str:
        """Return the description of the provider's sampler."""
        return self.wrapped_sampler.get_description()


def watch_sampler(provider: TracerProvider, app: AppSettings, problem_log: ProblemLog) -> None:
    """Count and log the calls that the provider's sampler drops because of their caller, or ignore the caller.

    Tracers that exist already keep the sampler as it was.
    """
    sampler = provider.sampler
    if not isinstance(sampler, CallerSampler):
        sampler = provider.sampler = CallerSampler(sampler)

    if not can_sample(sampler.wrapped_sampler):
        message = f"No trace is recorded, because of the sampler: {describe_sampler(provider)}"
        problem_log.log_once(logging.WARNING, add_code(MessageCode.EXPORT_DISABLED, message))

    def record_unsampled() -> None:
        problem_log.stats.add(unsampled=1)
        problem_log.log_once(logging.WARNING, add_code(MessageCode.NOT_SAMPLED_BY_CALLER, _NOT_SAMPLED))

    sampler.ignores_caller, sampler.on_unsampled = app.ignore_caller_sampling, record_unsampled
