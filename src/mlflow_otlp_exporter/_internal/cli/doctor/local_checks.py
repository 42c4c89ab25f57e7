"""Checks of `mlflow-otlp doctor` without a server: settings, packages, instrumentations, spool."""

import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from opentelemetry.sdk.resources import Resource

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus, create_failure
from mlflow_otlp_exporter._internal.cli.doctor.trace_check import create_test_spans
from mlflow_otlp_exporter._internal.cli.output import page_url
from mlflow_otlp_exporter._internal.cli.run import find_missing_exporter
from mlflow_otlp_exporter._internal.cli.spool import find_queued_elsewhere
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, pluralize
from mlflow_otlp_exporter._internal.config.describe import summarize_settings, unknown_variables
from mlflow_otlp_exporter._internal.config.models import Settings, SettingSource
from mlflow_otlp_exporter._internal.setup.instrumentation import (
    Instrumentation,
    find_instrumentations,
    find_missing_instrumentations,
    install_command,
    is_distribution_installed,
    select_instrumentations,
)
from mlflow_otlp_exporter._internal.setup.tracer_provider import can_sample, create_environment_sampler
from mlflow_otlp_exporter._internal.spool.directory import create_spool_directory
from mlflow_otlp_exporter._internal.spool.persistent_queue import JOURNAL_FOLDER, folder_name_for
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter
from mlflow_otlp_exporter._internal.version import __version__

_PACKAGES = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "requests")
_MIN_OPENTELEMETRY_VERSION = (1, 30)
# The size of a few requests.
_WRITE_TEST_BYTES = 64 * 1024


def run_local_checks(settings: Settings) -> Iterator[CheckResult]:
    """Check settings, packages, instrumentations and the spool."""
    yield _check_settings(settings)
    yield _check_tracing(settings)
    yield _check_packages()
    yield check_instrumentations(find_instrumentations(), is_distribution_installed, settings.app.auto_instrument)
    yield _check_spool(settings)


def _check_settings(settings: Settings) -> CheckResult:
    detail = summarize_settings(settings)
    unknown = list(unknown_variables(os.environ))
    if unknown:
        cause = f"Unknown variables are ignored: {', '.join(name for name, _ in unknown)}."
        replacements = ", ".join(f"{suggestion} instead of {name}" for name, suggestion in unknown if suggestion)
        unset = f"Unset unknown variables. All variables: {page_url('configuration')}"
        fix = f"Set {replacements}." if replacements else unset
        code = MessageCode.INVALID_SETTING
        return CheckResult("settings", CheckStatus.WARNING, detail, cause=cause, fix=fix, code=code)
    ignored = settings.traces.ignored_variables
    if ignored:
        cause = f"{', '.join(ignored)}: not used, because set for another server than the one that receives the spans."
        fix = "Nothing, if they are for metrics or logs of another backend; otherwise set `MLFLOW_TRACKING_*`."
        return CheckResult("settings", CheckStatus.OK, detail, cause=cause, fix=fix)
    return CheckResult("settings", CheckStatus.OK, detail)


def _check_tracing(settings: Settings) -> CheckResult:
    """Report the setting that leaves no span, or not those of all traces."""
    app, sources = settings.app, settings.sources
    sampler = create_environment_sampler()
    sampler_source = SettingSource("variable", "OTEL_TRACES_SAMPLER")
    trace_filter = make_trace_filter(app.noise)
    is_filtered = trace_filter is not None and trace_filter(create_test_spans(Resource({}), "doctor"))
    for is_off, detail, source in (
        (not app.enabled, "export is disabled", sources["enabled"]),
        (not can_sample(sampler), "OpenTelemetry's sampler records no trace", sampler_source),
        (app.sampling_ratio == 0, "the sampling ratio is 0", sources["sampling_ratio"]),
        (is_filtered, f"the trace filter {','.join(app.noise)} leaves out every trace", sources["noise"]),
    ):
        if is_off:
            cause, fix = f"The {source} leaves no span.", f"Unset `{source.name}`."
            code = MessageCode.EXPORT_DISABLED
            return CheckResult("tracing", CheckStatus.FAILED, f"{detail} ({source})", "", cause, fix, code)
    for is_partial, detail, source in (
        (not can_sample(sampler, all_traces=True), "OpenTelemetry's sampler records not all traces", sampler_source),
        (app.sampling_ratio < 1, f"{app.sampling_ratio:g} of the traces are sent", sources["sampling_ratio"]),
    ):
        if is_partial:
            cause, fix = "The other traces are missing in MLflow.", f"Unset `{source.name}` to send all traces."
            code = MessageCode.EXPORT_DISABLED
            return CheckResult("tracing", CheckStatus.WARNING, f"{detail} ({source})", "", cause, fix, code)
    if missing := find_missing_exporter(os.environ):
        cause = "OpenTelemetry's auto-instrumentation then exports nothing; `configure()` does not read the variable."
        fix = "Unset `OTEL_TRACES_EXPORTER` if the application calls `configure()`; otherwise set it to `mlflow`."
        detail, code = f"environment variable {missing}", MessageCode.EXPORT_DISABLED
        return CheckResult("tracing", CheckStatus.WARNING, detail, "", cause, fix, code)
    is_default = sources["noise"].kind == "default"
    note = "" if is_default else f"; the trace filter is {','.join(app.noise)} ({sources['noise']})"
    return CheckResult("tracing", CheckStatus.OK, f"on{note}")


def _check_packages() -> CheckResult:
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    detail = f"mlflow-otlp-exporter {__version__}, {packages}, Python {platform.python_version()}"
    outdated = [name for name in _PACKAGES[1:3] if _parse_version(versions[name]) < _MIN_OPENTELEMETRY_VERSION]
    if outdated:
        cause, fix = "OpenTelemetry is older than 1.30.", f"Run `pip install --upgrade {' '.join(outdated)}`."
        code = MessageCode.INSTRUMENTATION_MISSING
        return CheckResult("packages", CheckStatus.WARNING, detail, cause=cause, fix=fix, code=code)
    return CheckResult("packages", CheckStatus.OK, detail)


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def check_instrumentations(
    instrumentations: Collection[Instrumentation],
    is_installed: Callable[[str], bool],
    choice: bool | tuple[str, ...],
) -> CheckResult:
    """Check which instrumentations `configure()` would try, and whether one is missing.

    `is_installed` is called with names of distributions, `choice` is the setting `auto_instrument`.
    """
    silent, missing = find_missing_instrumentations(instrumentations, is_installed)
    names = [candidates[0].library for candidates in select_instrumentations(instrumentations, choice)]
    source = "" if choice is True else " (MLFLOW_OTLP_AUTO_INSTRUMENT)"
    detail = f"configure() enables: {', '.join(names) or 'none'}{source}"
    if silent:
        cause = f"No instrumentation of {', '.join(silent)} is installed, so it creates no spans."
        fix, code = f"Run `{install_command(silent)}`.", MessageCode.INSTRUMENTATION_MISSING
        return CheckResult("instrumentations", CheckStatus.WARNING, detail, cause=cause, fix=fix, code=code)
    note = f"; not installed: {', '.join(missing)}" if missing else ""
    return CheckResult("instrumentations", CheckStatus.OK, detail + note)


class RecordingLog(ProblemLog):
    """Collects messages instead of logging them."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log_once(self, level: int, message: str) -> None:
        """Collect a message."""
        if level >= logging.INFO:
            self.messages.append(message)


def _check_spool(settings: Settings) -> CheckResult:
    if not settings.disk.spool:
        return CheckResult("spool", CheckStatus.OK, f"off ({settings.sources['spool']})")
    name = folder_name_for(settings)
    try:
        folder = create_spool_directory(settings.disk.spool_dir, name, os.environ)
        _check_writable(folder)
    except OSError as error:
        where = settings.disk.spool_dir or "the default folders"
        reason = error.strerror or str(error)
        detail = f"{where} ({settings.sources['spool_dir']}) cannot be written: {reason}"
        return create_failure("spool", MessageCode.SPOOL_UNAVAILABLE, detail)
    totals = SpoolStorage(settings.disk, name, "", RecordingLog()).totals()
    free = shutil.disk_usage(folder).free // 1_000_000
    queued = f"{pluralize(totals.span_count, 'span')} queued in {pluralize(totals.file_count, 'request')}"
    detail = f"{folder}: {queued}; {free} MB of the disk free"
    journal_count = len(list((folder / JOURNAL_FOLDER).glob("*")))
    if journal_count:
        detail += f"; {pluralize(journal_count, 'file')} with spans of killed or running processes in {JOURNAL_FOLDER}/"
    if others := list(find_queued_elsewhere(settings)):
        cause = "; ".join(
            f"{pluralize(other.span_count, 'span')} queued"
            + (f", {pluralize(other.journal_count, 'file')} in {JOURNAL_FOLDER}/" if other.journal_count else "")
            + f": {other.target}"
            for other in others
        )
        command = "mlflow-otlp spool flush --from"
        fix = (
            f"If they belong to this server, run `{command} {others[0].folder.name}`, which sends them with these "
            "settings. `mlflow-otlp spool status` shows all of them."
        )
        detail += "; spans for another address or credential are on disk, and are not sent with these settings"
        return CheckResult("spool", CheckStatus.WARNING, detail, "", cause, fix, MessageCode.NOT_DELIVERED)
    if totals.file_count:
        cause = (
            "The server has not accepted these spans, or they were not sent yet. The next run of the app sends them."
        )
        fix = (
            "Nothing, if they should arrive. `mlflow-otlp spool flush` sends them now, or prints the reason why "
            "not; `spool list` shows their destination, `spool purge --yes` deletes all of them."
        )
        return CheckResult("spool", CheckStatus.OK, detail, cause=cause, fix=fix)
    return CheckResult("spool", CheckStatus.OK, detail)


def _check_writable(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(b"\x00" * _WRITE_TEST_BYTES)
        file.flush()
        os.fsync(file.fileno())
