"""`configure()`: the one line that puts an app's traces into MLflow."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._errors import ConfigurationError
from mlflow_otlp_exporter._exporter import MLflowSpanExporter
from mlflow_otlp_exporter._processor import MLflowSpanProcessor
from mlflow_otlp_exporter._report import logger
from mlflow_otlp_exporter._settings import Settings, resolve
from mlflow_otlp_exporter._telemetry import FLUSH_SECONDS, SHUTDOWN_SECONDS, FlushResult, Telemetry

_DEFAULTS: Mapping[str, Any] = {"create_experiment": True, "compact": True}

_lock = threading.RLock()
_current: Telemetry | None = None
_current_key: object = None
_processors: weakref.WeakKeyDictionary[TracerProvider, MLflowSpanProcessor] = weakref.WeakKeyDictionary()


class _ConfiguredSpanExporter(MLflowSpanExporter):
    """An exporter with settings that `configure()` has resolved."""

    def __init__(self, settings: Settings) -> None:
        self._assemble(settings)


def configure(
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    experiment_id: str | int | None = None,
    workspace: str | None = None,
    service_name: str | None = None,
    tracer_provider: TracerProvider | None = None,
    credentials: str | tuple[str, str] | Callable[[], str | None] | Any = None,
    headers: Mapping[str, str] | None = None,
    exporter: MLflowSpanExporter | None = None,
) -> Telemetry:
    """Sends the app's OpenTelemetry traces to MLflow.

    Joins the global tracer provider if the app has one, else makes one. What is not given comes from the environment
    (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_WORKSPACE`, `MLFLOW_TRACKING_TOKEN` and so on; the
    README has the table). Never waits for the server: an experiment is looked up, and created if it is missing, when
    the first spans are sent. At exit, what is left is sent.

    May be called again: the same settings give the same object, other settings replace the pipeline after flushing it,
    which takes 10 s at most.

    Args:
        tracking_uri: The address of the MLflow server (`MLFLOW_TRACKING_URI`; `http://localhost:5000`).
        experiment: The experiment's name (`MLFLOW_EXPERIMENT_NAME`). Without name and id: the one named like
            `service.name`, else `Default`.
        experiment_id: The experiment's id, instead of its name (`MLFLOW_EXPERIMENT_ID`).
        workspace: The workspace (`MLFLOW_WORKSPACE`).
        service_name: The resource's `service.name` (`OTEL_SERVICE_NAME`), for a provider that is made here.
        tracer_provider: The provider to join, instead of the global one.
        credentials: A token, a `pathlib.Path` of a token file, a (user, password) pair, or a function that returns a
            token or an Authorization header's value (`MLFLOW_TRACKING_TOKEN` and others).
        headers: More request headers.
        exporter: An exporter made by hand, instead of all of the above but `service_name` and `tracer_provider`.

    Returns:
        A handle: `flush()`, `shutdown()`, `stats()`, `trace_url()`.

    Raises:
        ConfigurationError: An argument, a variable or a file is wrong. Nothing has been changed then.
    """
    arguments = {
        "tracking_uri": tracking_uri,
        "experiment": experiment,
        "experiment_id": experiment_id,
        "workspace": workspace,
        "credentials": credentials,
        "headers": headers,
    }
    given = sorted(name for name, value in arguments.items() if value is not None)
    if exporter is not None and given:
        raise ConfigurationError(f"exporter= is given together with {', '.join(given)}: expected one or the other")
    settings = None if exporter else resolve(arguments, defaults=_DEFAULTS)
    global _current, _current_key
    with _lock:
        current = _current if _current is not None and not _current.closed else None
        known = tracer_provider if tracer_provider is not None else trace.get_tracer_provider()
        if current is not None and _current_key == (known, exporter or settings):
            return current
        # All that may be wrong is found before anything is changed.
        chosen = exporter if exporter is not None else _ConfiguredSpanExporter(_checked(settings))
        provider = _provider(tracer_provider, service_name)
        _current, _current_key = _telemetry(provider, chosen), (provider, exporter or settings)
        if current is not None:
            if current.exporter is chosen:
                current.retire()
            else:
                current.shutdown()
        return _current


def flush(timeout: float = FLUSH_SECONDS) -> FlushResult:
    """Sends what has ended and waits for it; see `Telemetry.flush`. Does nothing before `configure()`.

    Args:
        timeout: Seconds to wait at most.
    """
    return _current.flush(timeout) if _current else FlushResult()


def shutdown(timeout: float = SHUTDOWN_SECONDS) -> FlushResult:
    """Flushes, then stops exporting; `configure()` starts anew. Does nothing before `configure()`.

    Args:
        timeout: Seconds to wait at most.
    """
    global _current, _current_key
    with _lock:
        current, _current, _current_key = _current, None, None
    return current.shutdown(timeout) if current else FlushResult()


def _checked(settings: Settings | None) -> Settings:
    assert settings is not None
    return settings


def _provider(given: TracerProvider | None, service_name: str | None) -> TracerProvider:
    """The provider to join: the given one, else the global one, else a new one, which becomes the global one."""
    found: object = given if given is not None else trace.get_tracer_provider()
    if isinstance(found, TracerProvider):
        ours = found.resource.attributes.get(SERVICE_NAME)
        if service_name and ours != service_name:
            logger.warning("service_name=%r is not used: the tracer provider has service.name=%r", service_name, ours)
        return found
    if given is not None or not isinstance(found, trace.ProxyTracerProvider):
        where = "tracer_provider=" if given is not None else "the global tracer provider"
        raise ConfigurationError(
            f"{where} is a {type(found).__module__}.{type(found).__qualname__}: expected a TracerProvider of "
            "opentelemetry-sdk, as no other lets a span processor be added"
        )
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else None)
    provider = TracerProvider(resource=resource)
    trace.set_tracer_provider(provider)
    return provider


def _telemetry(provider: TracerProvider, exporter: MLflowSpanExporter) -> Telemetry:
    """A pipeline behind the provider's one processor of ours, which takes another exporter when there is a new one."""
    processor = _processors.get(provider)
    if processor is not None:
        return Telemetry(provider, exporter, processor, processor.attach(exporter))
    processor = _processors[provider] = MLflowSpanProcessor(exporter)
    made = Telemetry(provider, exporter, processor, processor.worker)
    provider.add_span_processor(processor)
    return made


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may hold it for ever
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lock)

# Registered at import, so that it runs after the app's own handlers, whose last spans it is to send.
atexit.register(shutdown)
