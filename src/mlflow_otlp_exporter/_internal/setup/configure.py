"""`configure()`: the one line that puts an app's traces into MLflow."""

from __future__ import annotations

import atexit
import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.config.describe import describe_unknown_variables, summarize_settings
from mlflow_otlp_exporter._internal.config.models import AppSettings, Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve, resolve_app
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.processing.processor import MLflowSpanProcessor
from mlflow_otlp_exporter._internal.setup.auto_instrumentation import disable_auto_exporters
from mlflow_otlp_exporter._internal.setup.process_exit import MultiprocessingExitHook, on_sigterm
from mlflow_otlp_exporter._internal.setup.telemetry import FLUSH_SECONDS, SHUTDOWN_SECONDS, FlushResult, Telemetry
from mlflow_otlp_exporter._internal.setup.tracer_provider import add_processor, provider_to_use, sdk_provider
from mlflow_otlp_exporter._internal.tracing.traced import use_provider

DEFAULTS: Mapping[str, Any] = {"create_experiment": True, "compact": True, "spool": True, "handle_sigterm": True}

_lock = threading.RLock()
_current: Telemetry | None = None
_current_key: object = None
_processors: weakref.WeakKeyDictionary[TracerProvider, MLflowSpanProcessor] = weakref.WeakKeyDictionary()


class _ConfiguredSpanExporter(MLflowSpanExporter):
    """An exporter with settings that `configure()` has resolved."""

    def __init__(self, settings: Settings) -> None:
        self._assemble(settings)


class _SilentSpanExporter(MLflowSpanExporter):
    """Stands where an exporter would, when nothing is to be sent."""

    def __init__(self) -> None:
        """Nothing is set up: without a pipeline all its methods do nothing."""


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
    mask: Callable[[str], str] | Sequence[str | re.Pattern[str]] | None = None,
    auto_instrument: bool | Sequence[str] | None = None,
    sampling_ratio: float | None = None,
    noise: str | Sequence[str] | None = None,
    enabled: bool | None = None,
    trace_info: bool | None = None,
    attachments: bool | None = None,
    spool: bool | None = None,
    durability: str | None = None,
    exporter: MLflowSpanExporter | None = None,
) -> Telemetry:
    """Sends the app's OpenTelemetry traces to MLflow.

    Joins the global tracer provider if the app has one, else makes one. What is not given comes from the environment
    (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_WORKSPACE`, `MLFLOW_TRACKING_TOKEN` and so on;
    docs/configuration.md has the table). Never waits for the server: an experiment is looked up, and created if it is
    missing, when the first spans are sent. At exit, what is left is sent.

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
        trace_info: Send the source and OpenInference's metadata of each trace over MLflow's REST API, to servers of all
            versions. Servers before 3.14 get names, tags, sessions, users and runs in any case
            (`MLFLOW_OTLP_TRACE_INFO`; false).
        attachments: Upload large images, sounds and files to MLflow, and refer to them in spans (docs/attachments.md;
            `MLFLOW_OTLP_ATTACHMENTS`; false).
        spool: Keep on disk what the server does not take now, and send it later, also in another run of the app
            (`MLFLOW_OTLP_SPOOL`; true towards MLflow, false towards an OTLP endpoint).
        durability: `request` or `every-span`: with the latter each span is on disk when its `end()` returns, and
            survives `kill -9` (`MLFLOW_OTLP_DURABILITY`; `request`).
        mask: What is masked before anything is read, added or written (`MLFLOW_OTLP_MASK`): a function from text to
            text, or some of `email`, `keys`, `cards`, `phones`, and compiled expressions. Where it raises, the text is
            hidden.
        auto_instrument: Whether to switch on the instrumentations that are installed, one for each library, or the
            names of some; `-name`: all but that one (`MLFLOW_OTLP_AUTO_INSTRUMENT`; true). Names in
            `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` are left out.
        sampling_ratio: Which part of the traces is sent, from 0 to 1 (`MLFLOW_TRACE_SAMPLING_RATIO`; 1).
        noise: Which traces are left out: `default`, those of HTTP, database and messaging spans alone; `all`, those
            without any span of an agent or model; `none`; or names of instrumentation scopes (`MLFLOW_OTLP_NOISE`).
        enabled: False to do nothing at all (`MLFLOW_OTLP_ENABLED`, `OTEL_SDK_DISABLED`).
        exporter: An exporter made by hand, instead of all that says where spans go and how.

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
        "spool": spool,
        "durability": durability,
        "mask": mask,
        "trace_info": trace_info,
        "attachments": attachments,
    }
    app = {"auto_instrument": auto_instrument, "sampling_ratio": sampling_ratio, "noise": noise, "enabled": enabled}
    given = sorted(name for name, value in arguments.items() if value is not None)
    if exporter is not None and given:
        said = f"exporter= is given together with {', '.join(given)}: expected one or the other"
        raise ConfigurationError(said, MessageCode.CONFLICTING_SETTINGS)
    settings = None if exporter else resolve({**arguments, **app}, defaults=DEFAULTS)
    about_app = resolve_app(app) if settings is None else settings.app
    global _current, _current_key
    with _lock:
        current = _current if _current is not None and not _current.closed else None
        known = sdk_provider(tracer_provider if tracer_provider is not None else trace.get_tracer_provider())
        if current is not None and _current_key == (known, exporter or settings, about_app):
            return current
        # All that may be wrong is found before anything is changed.
        chosen = _exporter(exporter, settings, about_app)
        joined = ""
        if about_app.enabled:
            provider, joined = provider_to_use(tracer_provider, service_name)
            known, made = provider, _telemetry(provider, chosen, about_app)
        else:
            made = _disabled(known, chosen)
        _current, _current_key = made, (known, exporter or settings, about_app)
        if current is not None:
            if current.exporter is chosen:
                current.retire()
            else:
                current.shutdown()
        use_provider(tracer_provider)
        _announce(settings, about_app, joined)
        if about_app.enabled:
            disable_auto_exporters(made.tracer_provider)
            _instrument(made.tracer_provider, about_app)
            _children.arrange()
            if settings is not None and settings.disk.spool and settings.disk.handle_sigterm:
                on_sigterm(shutdown)
        return made


def flush(timeout: float = FLUSH_SECONDS) -> FlushResult:
    """Sends what has ended and waits for it; see `Telemetry.flush`. Does nothing before `configure()`.

    Args:
        timeout: Seconds to wait at most.
    """
    return _current.flush(timeout) if _current else FlushResult()


def log_feedback(
    trace_id: int | str | None,
    name: str,
    value: Any,
    *,
    rationale: str | None = None,
    source: str | None = None,
    source_type: str = "HUMAN",
    metadata: Mapping[str, Any] | None = None,
    span_id: int | str | None = None,
    workspace: str | None = None,
) -> str | None:
    """Sends feedback on a trace to MLflow; see `Telemetry.log_feedback`. Does nothing before `configure()`.

    Args:
        trace_id: OpenTelemetry's trace id, as a number or in hexadecimal, or MLflow's (`tr-...`); None for the current
            span's trace.
        name: What is judged.
        value: The judgement.
        rationale: Why.
        source: Who says so.
        source_type: `HUMAN`, `CODE` or `LLM_JUDGE`.
        metadata: More, by name.
        span_id: The span that is judged; None for the trace.
        workspace: The trace's workspace, if it is not the one that its spans went to from here.

    Returns:
        The id of the assessment; None if it cannot be sent.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    current = _current
    if current is None:
        return None
    return current.log_feedback(
        trace_id,
        name,
        value,
        rationale=rationale,
        source=source,
        source_type=source_type,
        metadata=metadata,
        span_id=span_id,
        workspace=workspace,
    )


def log_expectation(
    trace_id: int | str | None,
    name: str,
    value: Any,
    *,
    source: str | None = None,
    source_type: str = "HUMAN",
    metadata: Mapping[str, Any] | None = None,
    span_id: int | str | None = None,
    workspace: str | None = None,
) -> str | None:
    """Sends what a trace should have answered to MLflow; see `Telemetry.log_expectation`.

    Args:
        trace_id: The trace; None for the current span's.
        name: What is expected.
        value: What it should have been.
        source: Who says so.
        source_type: `HUMAN`, `CODE` or `LLM_JUDGE`.
        metadata: More, by name.
        span_id: The span; None for the trace.
        workspace: The trace's workspace.

    Returns:
        The id of the assessment; None if it cannot be sent.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    current = _current
    if current is None:
        return None
    return current.log_expectation(
        trace_id,
        name,
        value,
        source=source,
        source_type=source_type,
        metadata=metadata,
        span_id=span_id,
        workspace=workspace,
    )


def shutdown(timeout: float = SHUTDOWN_SECONDS) -> FlushResult:
    """Flushes, then stops exporting; `configure()` starts anew. Does nothing before `configure()`.

    Args:
        timeout: Seconds to wait at most.
    """
    global _current, _current_key
    with _lock:
        current, _current, _current_key = _current, None, None
    return current.shutdown(timeout) if current else FlushResult()


def _exporter(given: MLflowSpanExporter | None, settings: Settings | None, app: AppSettings) -> MLflowSpanExporter:
    if given is not None:
        return given
    assert settings is not None
    return _ConfiguredSpanExporter(settings) if app.enabled else _SilentSpanExporter()


def _disabled(known: object, exporter: MLflowSpanExporter) -> Telemetry:
    """What does nothing: no provider is made or joined."""
    provider = known if isinstance(known, TracerProvider) else TracerProvider(shutdown_on_exit=False)
    processor = MLflowSpanProcessor(exporter)
    return Telemetry(provider, exporter, processor, processor.worker)


def _announce(settings: Settings | None, app: AppSettings, joined: str) -> None:
    if not app.enabled:
        said = "nothing is sent: it is switched off by enabled=, MLFLOW_OTLP_ENABLED or OTEL_SDK_DISABLED"
        logger.info("%s [%s]", said, MessageCode.EXPORT_DISABLED)
    elif settings is None:
        logger.info("traces go to an exporter made by hand; %s [%s]", joined, MessageCode.EXPORT_CONFIGURED)
    else:
        logger.info("traces go to %s; %s [%s]", summarize_settings(settings), joined, MessageCode.EXPORT_CONFIGURED)
        for line in describe_unknown_variables(os.environ):
            logger.warning("%s [%s]", line, MessageCode.INVALID_SETTING)


def _instrument(provider: TracerProvider, app: AppSettings) -> None:
    if app.auto_instrument is False:
        return
    # Here, not at the top: it is not needed where nothing is configured, and importlib.metadata takes its time.
    from mlflow_otlp_exporter._internal.setup.instrumentation import instrument

    done = instrument(app.auto_instrument, provider)
    if done:
        logger.info("instrumented: %s [%s]", ", ".join(done), MessageCode.INSTRUMENTED)


def _telemetry(provider: TracerProvider, exporter: MLflowSpanExporter, app: AppSettings) -> Telemetry:
    """A pipeline behind the provider's one processor of ours, which takes another exporter when there is a new one."""
    processor = _processors.get(provider)
    if processor is not None:
        return Telemetry(provider, exporter, processor, processor.attach(exporter, app))
    processor = _processors[provider] = MLflowSpanProcessor(exporter)
    processor.worker = processor.attach(exporter, app)
    made = Telemetry(provider, exporter, processor, processor.worker)
    add_processor(provider, processor)
    return made


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may hold it for ever
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lock)

# Registered at import, so that it runs after the app's own handlers, whose last spans it is to send.
atexit.register(shutdown)
_children = MultiprocessingExitHook(shutdown)
