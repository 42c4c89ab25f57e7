"""What `mlflow-otlp doctor` sees without the server: settings, packages, instrumentations, the spool."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus
from mlflow_otlp_exporter._internal.cli.doctor.probe import failed
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.describe import summarize_settings, unknown_variables
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.setup.instrumentation import (
    Instrumentation,
    find_instrumentations,
    select_instrumentations,
)
from mlflow_otlp_exporter._internal.spool.directory import create_spool_directory
from mlflow_otlp_exporter._internal.spool.persistent_queue import folder_name_for
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from mlflow_otlp_exporter._internal.version import __version__

_PACKAGES = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "requests")
_OLDEST = (1, 30)
# Distributions of what agents are made with, the library's name here, and the instrumentation to install for it.
_LIBRARIES = {
    "agno": ("agno", "openinference-instrumentation-agno"),
    "anthropic": ("anthropic", "openinference-instrumentation-anthropic"),
    "crewai": ("crewai", "openinference-instrumentation-crewai"),
    "dspy": ("dspy", "openinference-instrumentation-dspy"),
    "google-genai": ("google_genai", "openinference-instrumentation-google-genai"),
    "groq": ("groq", "openinference-instrumentation-groq"),
    "langchain-core": ("langchain", "openinference-instrumentation-langchain"),
    "litellm": ("litellm", "openinference-instrumentation-litellm"),
    "llama-index-core": ("llama_index", "openinference-instrumentation-llama-index"),
    "mistralai": ("mistralai", "openinference-instrumentation-mistralai"),
    "openai": ("openai", "openinference-instrumentation-openai"),
    "openai-agents": ("openai_agents", "openinference-instrumentation-openai-agents"),
    "smolagents": ("smolagents", "openinference-instrumentation-smolagents"),
}
# Enough for the files of a few requests.
_PROBE_BYTES = 64 * 1024


def run_local_checks(settings: Settings) -> Iterator[CheckResult]:
    """Looks at what is here.

    Args:
        settings: All settings.
    """
    yield _settings(settings)
    yield _packages()
    yield instrumentations(
        find_instrumentations(),
        {each.name.lower() for each in distributions() if each.name},
        settings.app.auto_instrument,
    )
    yield _spool(settings)


def _settings(settings: Settings) -> CheckResult:
    found = summarize_settings(settings)
    mistyped = list(unknown_variables(os.environ))
    if mistyped:
        cause = f"Unknown variables are ignored: {', '.join(name for name, _ in mistyped)}."
        meant = ", ".join(f"{near} instead of {name}" for name, near in mistyped if near)
        fix = f"Set {meant}." if meant else "Unset it; docs/configuration.md lists all variables."
        return CheckResult(
            "settings", CheckStatus.WARNING, found, cause=cause, fix=fix, code=MessageCode.INVALID_SETTING
        )
    unused = settings.traces.ignored_variables
    if unused:
        names = ", ".join(unused)
        cause = f"{names}: not used, because set for another server than the one that receives the spans."
        fix = "Nothing, if they are for metrics or logs of another backend; otherwise set `MLFLOW_TRACKING_*`."
        return CheckResult("settings", CheckStatus.OK, found, cause=cause, fix=fix)
    return CheckResult("settings", CheckStatus.OK, found)


def _packages() -> CheckResult:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    line = f"mlflow-otlp-exporter {__version__}, {listed}, Python {platform.python_version()}"
    old = [name for name in _PACKAGES[1:3] if _number(found[name]) < _OLDEST]
    if old:
        fix = f"Run `pip install --upgrade {' '.join(old)}`."
        return CheckResult(
            "packages",
            CheckStatus.WARNING,
            line,
            "",
            "OpenTelemetry is older than 1.30.",
            fix,
            MessageCode.INSTRUMENTATION_MISSING,
        )
    return CheckResult("packages", CheckStatus.OK, line)


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def instrumentations(
    found: Collection[Instrumentation], installed: Collection[str], choice: bool | tuple[str, ...]
) -> CheckResult:
    """Which instrumentations `configure()` would try, and whether one is missing.

    Args:
        found: Those that are installed.
        installed: Distributions that are installed, by lower-case name.
        choice: What `auto_instrument` says.
    """
    libraries = {library: package for name, (library, package) in _LIBRARIES.items() if name in installed}
    known = {candidate.library for candidate in found}
    lacking = sorted(package for library, package in libraries.items() if library not in known)
    names = [several[0].library for several in select_instrumentations(found, choice)]
    on = "" if choice is True else " (MLFLOW_OTLP_AUTO_INSTRUMENT)"
    line = f"configure() switches on: {', '.join(names) or 'none'}{on}"
    if lacking and not known & set(libraries):
        cause = f"No instrumentation of {', '.join(sorted(libraries))} is installed, so it creates no spans."
        fix = f"Run `pip install {' '.join(lacking)}`."
        return CheckResult(
            "instrumentations", CheckStatus.WARNING, line, "", cause, fix, MessageCode.INSTRUMENTATION_MISSING
        )
    return CheckResult(
        "instrumentations", CheckStatus.OK, line + (f"; not installed: {', '.join(lacking)}" if lacking else "")
    )


class RecordingLog(ProblemLog):
    """A report that keeps what is said instead of logging it.

    Attributes:
        said: What was said.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def once(self, level: int, message: str) -> None:
        """Keeps a message."""
        if level >= logging.INFO:
            self.said.append(message)


def _spool(settings: Settings) -> CheckResult:
    """Whether the spool can be written to, and what lies there."""
    if not settings.disk.spool:
        return CheckResult("spool", CheckStatus.OK, f"off ({settings.sources['spool']})")
    name = folder_name_for(settings)
    try:
        folder = create_spool_directory(settings.disk.spool_dir, name, os.environ)
        _try(folder)
    except OSError as error:
        said = error.strerror or str(error)
        where = settings.disk.spool_dir or "the usual places"
        return failed(
            "spool",
            MessageCode.SPOOL_UNAVAILABLE,
            f"{where} ({settings.sources['spool_dir']}) cannot be written: {said}",
        )
    totals = SpoolStorage(settings.disk, name, "", RecordingLog()).totals()
    free = shutil.disk_usage(folder).free // 1_000_000
    found = f"{folder}: {totals.span_count} spans wait in {totals.file_count} requests; {free} MB of the disk are free"
    if totals.file_count:
        cause = "The server did not accept these spans. The next process that uses the exporter sends them."
        fix = (
            "Nothing, if they should arrive; `mlflow-otlp spool list` shows where they go, `spool purge` removes them."
        )
        return CheckResult("spool", CheckStatus.OK, found, cause=cause, fix=fix)
    return CheckResult("spool", CheckStatus.OK, found)


def _try(folder: Path) -> None:
    """Writes as the spool would, and takes it away again."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(b"\x00" * _PROBE_BYTES)
        file.flush()
        os.fsync(file.fileno())
