"""`configure()`, and the module-level functions that use the pipeline that it set up."""

import atexit
import inspect
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, logger
from mlflow_otlp_exporter._internal.common.process_end import begin_end, install_sigterm_handler, run_closing_steps
from mlflow_otlp_exporter._internal.common.types import Durability, MaskName, NoiseFilter
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter, pipeline_of
from mlflow_otlp_exporter._internal.processing.processor import MLflowSpanProcessor, attach_exporter, worker_of
from mlflow_otlp_exporter._internal.setup.process_exit import MultiprocessingExitHook
from mlflow_otlp_exporter._internal.setup.telemetry import (
    FLUSH_TIMEOUT_SECONDS,
    SHUTDOWN_TIMEOUT_SECONDS,
    FlushResult,
    Telemetry,
)
from mlflow_otlp_exporter._internal.setup.tracer_provider import (
    add_processor,
    describe_sampler,
    log_disabled,
    resolve_provider,
    unwrap_provider,
    watch_sampler,
)
from mlflow_otlp_exporter._internal.tracing.spans import use_provider

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.config.models import AppSettings, Settings

DEFAULTS: Mapping[str, Any] = {"create_experiment": True, "compact": True, "spool": True, "handle_sigterm": True}

_P = ParamSpec("_P")
_lock = threading.RLock()
_problem_log = ProblemLog()  # for calls before `configure()` or after `shutdown()`
_current: Telemetry | None = None
_last: Telemetry | None = None  # that is shutting down, or was shut down
_current_key: object = None
_processors: weakref.WeakKeyDictionary[TracerProvider, MLflowSpanProcessor] = weakref.WeakKeyDictionary()


def configure(
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    experiment_id: str | int | None = None,
    workspace: str | None = None,
    service_name: str | None = None,
    tracer_provider: TracerProvider | None = None,
    credentials: str | Path | tuple[str, str] | Callable[[], str | None] | None = None,
    headers: Mapping[str, str] | None = None,
    mask: Callable[[str], str] | Sequence[MaskName | re.Pattern[str]] | None = None,
    auto_instrument: bool | Sequence[str] | None = None,
    sampling_ratio: float | None = None,
    ignore_caller_sampling: bool | None = None,
    noise: NoiseFilter | str | Sequence[str] | None = None,
    enabled: bool | None = None,
    create_experiment: bool | None = None,
    verbose: bool | None = None,
    trace_info: bool | None = None,
    attachments: bool | None = None,
    spool: bool | None = None,
    durability: Durability | None = None,
    exporter: MLflowSpanExporter | None = None,
) -> Telemetry:
    """Send the application's OpenTelemetry traces to MLflow.

    Uses the global tracer provider if the application has one, and creates it otherwise. Settings that are not passed
    come from the environment (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_WORKSPACE`,
    `MLFLOW_TRACKING_TOKEN` and others; table in docs/configuration.md). The first call does not wait for the
    server: the experiment is looked up, and created if it is missing, when the first spans are sent. At exit, the
    remaining spans are sent.

    Can be called again: with the same settings it returns the same object; with other settings it flushes the
    pipeline, for at most 10 s, and replaces it.

    Args:
        tracking_uri: URL of the MLflow server (`MLFLOW_TRACKING_URI`; `http://localhost:5000`).
        experiment: Name of the experiment (`MLFLOW_EXPERIMENT_NAME`). Without name and id: the experiment named like
            `service.name`, else `Default`.
        experiment_id: Id of the experiment, instead of its name (`MLFLOW_EXPERIMENT_ID`).
        workspace: Name of the workspace (`MLFLOW_WORKSPACE`).
        service_name: The resource's `service.name` for a new tracer provider (`OTEL_SERVICE_NAME`).
        tracer_provider: Tracer provider to use instead of the global one.
        credentials: A token, a `pathlib.Path` of a token file, a (user, password) pair, or a function that returns a
            token or the value of an Authorization header (`MLFLOW_TRACKING_TOKEN` and others).
        headers: Additional request headers.
        trace_info: Send the source (the name of the program) and OpenInference's metadata of each trace over MLflow's
            REST API, to servers of all versions. Servers before 3.14 get names, tags, sessions, users and runs in any
            case (`MLFLOW_OTLP_TRACE_INFO`; false).
        attachments: Upload large images, audio and files to MLflow and reference them in spans
            (`MLFLOW_OTLP_ATTACHMENTS`; false; docs/attachments.md).
        spool: Write spans to disk that the server does not accept now, and send them later, also in another run of the
            application (`MLFLOW_OTLP_SPOOL`; true if the target is MLflow, false if it is an OTLP endpoint).
        durability: `request` or `every-span`. With `every-span`, each span is on disk when its `end()` returns, and
            survives `kill -9` (`MLFLOW_OTLP_DURABILITY`; `request`).
        mask: Masking that is applied before spans are read, enriched or written (`MLFLOW_OTLP_MASK`): a function from
            text to text, or a sequence of `email`, `keys`, `cards`, `phones` and compiled regular expressions. If the
            function raises, the text is hidden.
        auto_instrument: Which installed instrumentations to activate, one per library: true (all), false (none), names
            of libraries, or names with a leading `-` to exclude (`MLFLOW_OTLP_AUTO_INSTRUMENT`; true). Names in
            `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` are excluded.
        sampling_ratio: Ratio of the traces to send, from 0 to 1 (`MLFLOW_TRACE_SAMPLING_RATIO`; 1).
        ignore_caller_sampling: Record traces even if their caller did not sample them, as load balancers do
            (`MLFLOW_OTLP_IGNORE_CALLER_SAMPLING`; false).
        noise: Which traces are filtered out (`MLFLOW_OTLP_NOISE`). `default`: those with spans of HTTP, databases,
            messaging and coding agents' runtime only, without content of a model, tool, agent or retriever. `all`:
            those without a span of an agent or a model. `none`: no traces. Patterns for names of instrumentation
            scopes: those that contain only spans of these scopes.
        enabled: False to disable everything (`MLFLOW_OTLP_ENABLED`, `OTEL_SDK_DISABLED`; true).
        create_experiment: Create the experiment if it does not exist (`MLFLOW_OTLP_CREATE_EXPERIMENT`; true).
        verbose: Print to stderr where traces go, and links to the experiment and the first trace: true, false, or None
            for only where a person is looking, in a terminal or notebook (`MLFLOW_OTLP_VERBOSE`; None).
        exporter: An `MLflowSpanExporter` to use, instead of the arguments about target and delivery.

    Returns:
        The handle of the pipeline, with `flush()`, `shutdown()`, `stats()` and `trace_url()`.

    Raises:
        ConfigurationError: An argument, an environment variable or a file is invalid. Nothing was changed.
    """
    # Imported here, because an application that only imports the package should not wait for them.
    from mlflow_otlp_exporter._internal.config.models import AppSettings
    from mlflow_otlp_exporter._internal.config.resolver import resolve, resolve_app
    from mlflow_otlp_exporter._internal.config.schema import select_settings

    arguments, app_arguments = select_settings(locals()), select_settings(locals(), AppSettings)
    conflicts = sorted(name for name in arguments.keys() - app_arguments.keys() if arguments[name] is not None)
    if exporter is not None and conflicts:
        message = f"exporter= cannot be combined with {', '.join(conflicts)}: expected one or the other"
        raise ConfigurationError(message, MessageCode.CONFLICTING_SETTINGS)
    settings = None if exporter else resolve(arguments, defaults=DEFAULTS)
    app = resolve_app(app_arguments) if settings is None else settings.app
    global _current, _current_key  # noqa: PLW0603 - of this process
    with _lock:
        previous = _current if _current is not None and not _current.is_closed else None
        provider = unwrap_provider(tracer_provider if tracer_provider is not None else trace.get_tracer_provider())
        if previous is not None and _current_key == (provider, exporter or settings, app):
            return previous
        # Whatever is invalid raises here, before anything is changed.
        new_exporter = exporter if settings is None else _create_exporter(settings)
        assert new_exporter is not None
        origin, pipeline = "", pipeline_of(new_exporter)
        if app.enabled:
            provider, origin = resolve_provider(tracer_provider, service_name)
            telemetry = _create_telemetry(provider, new_exporter, app)
            if pipeline is not None:
                watch_sampler(provider, app, pipeline.problem_log)
        else:
            telemetry = _create_disabled_telemetry(provider, new_exporter)
        _current, _current_key = telemetry, (provider, exporter or settings, app)
        try:
            if previous is not None:
                previous._detach(keeps_exporter=previous.exporter is new_exporter)  # noqa: SLF001 - of this package
                origin += "; an earlier configure() with other settings is replaced"
            use_provider(tracer_provider)
            _log_summary(settings, app_arguments if not app.enabled else None, provider, origin)
            if app.enabled:
                _activate(telemetry, settings, app)
        except BaseException:
            _current_key = None  # interrupted: the next call starts again
            raise
        return telemetry


def flush(timeout: float = FLUSH_TIMEOUT_SECONDS) -> FlushResult:
    """Send all ended spans and wait for their outcome; see `Telemetry.flush`. Does nothing before `configure()`.

    Args:
        timeout: Maximum time to wait, in seconds; 30 by default.

    Returns:
        The outcome of the spans since the last flush.
    """
    return _current.flush(timeout) if _current else FlushResult()


def _call_current(method: Callable[Concatenate[Telemetry, _P], str | None]) -> Callable[_P, str | None]:
    """Make a module-level function of a method; before `configure()`, the function only logs that it has no effect."""

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> str | None:
        current = _current
        if current is None:
            message = f"Feedback dropped: {method.__name__}() was called before configure() or after shutdown()"
            _problem_log.log_once(logging.WARNING, add_code(MessageCode.FEEDBACK_DROPPED, message))
            return None
        return method(current, *args, **kwargs)

    signature = inspect.signature(method)
    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return call


log_feedback = _call_current(Telemetry.log_feedback)
log_expectation = _call_current(Telemetry.log_expectation)


def shutdown(timeout: float = SHUTDOWN_TIMEOUT_SECONDS) -> FlushResult:
    """Flush, then stop exporting; `configure()` starts again. Does nothing before `configure()`.

    Args:
        timeout: Maximum time to wait, in seconds; 10 by default.

    Returns:
        The outcome of the spans since the last flush.
    """
    global _current, _current_key, _last  # noqa: PLW0603 - as in configure()
    with _lock:
        current, _current, _current_key = _current, None, None
        _last = current or _last
    return current.shutdown(timeout) if current else FlushResult()


def _end(timeout: float = SHUTDOWN_TIMEOUT_SECONDS) -> None:
    """Shut down at the end of the process, or wait for the shutdown that is in progress."""
    begin_end()
    run_closing_steps(timeout, shutdown, _shut_down_last, is_outermost=True)


def _shut_down_last(timeout: float) -> None:
    if _last is not None:
        _last.shutdown(timeout)


def _end_at_signal(timeout: float) -> None:
    current = _current
    if current is not None:
        current._end_open_spans()  # noqa: SLF001 - of this package
    _end(timeout)


def _activate(telemetry: Telemetry, settings: "Settings | None", app: "AppSettings") -> None:
    from mlflow_otlp_exporter._internal.setup.auto_instrumentation import disable_auto_exporters

    pipeline = pipeline_of(telemetry.exporter)
    if pipeline is not None and app.verbose is not False:
        from mlflow_otlp_exporter._internal.setup.first_run import announce

        announce(pipeline, app)
    disable_auto_exporters(telemetry.tracer_provider)
    _instrument(telemetry.tracer_provider, app)
    _exit_hook.install()
    if settings is not None and settings.disk.spool and settings.disk.handle_sigterm:
        install_sigterm_handler(_end_at_signal, flush)


def _create_exporter(settings: "Settings") -> MLflowSpanExporter:
    # Without the constructor, which would resolve the settings again. Without a pipeline, every method does nothing.
    exporter = MLflowSpanExporter.__new__(MLflowSpanExporter)
    if settings.app.enabled:
        exporter._assemble(settings)  # noqa: SLF001 - the part of the constructor that remains
    return exporter


def _create_telemetry(provider: TracerProvider, exporter: MLflowSpanExporter, app: "AppSettings") -> Telemetry:
    # A provider cannot remove a processor: its one processor of this library gets the new exporter.
    processor = _processors.get(provider)
    if processor is not None:
        return Telemetry(provider, exporter, processor, attach_exporter(processor, exporter, app))
    processor = _processors[provider] = MLflowSpanProcessor(exporter)
    telemetry = Telemetry(provider, exporter, processor, attach_exporter(processor, exporter, app))
    add_processor(provider, processor)
    return telemetry


def _create_disabled_telemetry(provider: object, exporter: MLflowSpanExporter) -> Telemetry:
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider(shutdown_on_exit=False)  # does not become the global one
    processor = MLflowSpanProcessor(exporter)
    return Telemetry(provider, exporter, processor, worker_of(processor))


def _log_summary(
    settings: "Settings | None", disabling_arguments: Mapping[str, Any] | None, provider: object, origin: str
) -> None:
    from mlflow_otlp_exporter._internal.config.describe import describe_unknown_variables, summarize_settings

    if disabling_arguments is not None:
        log_disabled(disabling_arguments)
        return
    target = "the exporter of argument exporter=" if settings is None else summarize_settings(settings)
    sampler = describe_sampler(provider)
    origin += f"; sampler: {sampler}" if sampler else ""
    logger.info("Sending traces to %s; tracer provider: %s [%s]", target, origin, MessageCode.EXPORT_CONFIGURED)
    if settings is not None:
        for line in describe_unknown_variables(os.environ):
            logger.warning("%s [%s]", line, MessageCode.INVALID_SETTING)


def _instrument(provider: TracerProvider, app: "AppSettings") -> None:
    if app.auto_instrument is False:
        return
    # Imported here, because importlib.metadata takes time, and only applications that call configure() need it.
    from mlflow_otlp_exporter._internal.setup.instrumentation import instrument

    enabled = instrument(app.auto_instrument, provider)
    if enabled:
        logger.info("Instrumented %s [%s]", ", ".join(enabled), MessageCode.INSTRUMENTED)


def _reset_lock_after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it at the fork, and never releases it
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_reset_lock_after_fork)

# Registered at import: handlers run in reverse order, so this one runs after the application's, whose last spans it
# sends.
atexit.register(_end)
_exit_hook = MultiprocessingExitHook(_end)
