"""Finds the installed instrumentations by their entry points, and enables one of them for each library.

If a library has several, OpenInference's come first, then those that follow OpenTelemetry's conventions for generative
AI, then others: MLflow and its console understand them in this order.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, version
from typing import Any

from opentelemetry.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.setup.observed_calls import (
    CLIENT_LIBRARIES,
    ClientTracerProvider,
    mark_langchain_calls,
)

_GROUPS = ("openinference_instrumentor", "opentelemetry_instrumentor")
_DISABLED_VARIABLE = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
# These create no spans.
_WITHOUT_SPANS = frozenset({"logging", "system_metrics"})
_LIBRARY_ALIASES = {
    "llamaindex": "llama_index",
    "openai_agents_v2": "openai_agents",
    "agents": "openai_agents",
    "google_generativeai": "google_genai",
    "vertex_ai": "vertexai",
    "pydanticai": "pydantic_ai",
    "mistral": "mistralai",
    "aws_bedrock": "bedrock",
}
# Packages all of which an instrumentation instruments, or one of which is enough.
_EXTRAS = ("instruments", "instruments-any")
# Distributions of libraries for agents that have an OpenInference instrumentation.
_LIBRARIES = (
    *("agno", "anthropic", "crewai", "dspy", "google-genai", "groq", "langchain-core", "litellm", "llama-index-core"),
    *("mistralai", "openai", "openai-agents", "smolagents"),
)
# Distributions that create spans of the libraries that they call, and announce this by no entry point.
_TRACING_LIBRARIES = (
    *("agent-framework-core", "google-adk", "langfuse", "livekit-agents", "logfire", "openlit", "pydantic-ai-slim"),
    *("semantic-kernel", "strands-agents"),
)
_OWN_EXTRAS = frozenset({"anthropic", "langchain", "llama-index", "openai", "openai-agents"})
_AFFIXES = re.compile(r"^(?:genai|gen_ai)_|_(?:v\d+|instrumentor|genai)$")


@dataclass(frozen=True)
class Instrumentation:
    """An installed instrumentation; `library` is one name for all instrumentations of the same library."""

    library: str
    name: str
    value: str  # module:class
    priority: int  # 0: OpenInference, 1: conventions for generative AI, 2: others
    entry_point: EntryPoint

    @property
    def package(self) -> str:
        """The distribution and its version, else the module."""
        dist = self.entry_point.dist
        return f"{dist.name} {dist.version}" if dist is not None else self.value.partition(":")[0]


def normalize_library_name(name: str) -> str:
    library = name.strip().lower().replace("-", "_")
    while (shorter := _AFFIXES.sub("", library)) != library:
        library = shorter
    return _LIBRARY_ALIASES.get(library, library)


def get_priority(value: str, distribution: str) -> int:
    """Return 0 for OpenInference's instrumentations, 1 for OpenTelemetry's for generative AI, 2 for others."""
    if value.startswith("openinference."):
        return 0
    genai = re.search(r"genai|gen_ai|[_-]v2\b", f"{value.partition(':')[0]} {distribution}")
    return 1 if genai and value.startswith("opentelemetry.") else 2


def find_instrumentations() -> list[Instrumentation]:
    instrumentations: dict[str, Instrumentation] = {}
    for group in _GROUPS:
        for point in entry_points(group=group):
            priority = get_priority(point.value, point.dist.name if point.dist is not None else "")
            library = normalize_library_name(point.name)
            instrumentations.setdefault(point.value, Instrumentation(library, point.name, point.value, priority, point))
    return list(instrumentations.values())


def select_instrumentations(
    instrumentations: Iterable[Instrumentation], choice: bool | Sequence[str], disabled: Iterable[str] = ()
) -> list[list[Instrumentation]]:
    """Return the instrumentations to try for each library, sorted by priority.

    `choice` is True for all, False for none, names of some, or `-name` for all but some. `disabled` are names that
    another setting excludes; `*` excludes all.
    """
    if choice is False:
        return []
    names = [] if choice is True else list(choice)
    excluded = {normalize_library_name(name[1:]) for name in names if name.startswith("-")}
    excluded |= {normalize_library_name(name) for name in disabled}
    included = {normalize_library_name(name) for name in names if not name.startswith("-")}
    if "*" in excluded:
        return []
    libraries: dict[str, list[Instrumentation]] = {}
    for candidate in instrumentations:
        library = candidate.library
        if library in excluded or (included and library not in included) or library in _WITHOUT_SPANS:
            continue
        libraries.setdefault(library, []).append(candidate)
    return [
        sorted(candidates, key=lambda candidate: (candidate.priority, candidate.value))
        for _, candidates in sorted(libraries.items())
    ]


def find_missing_instrumentations(
    instrumentations: Iterable[Instrumentation], is_installed: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Return the installed libraries for agents without instrumentation, if none of them has one, and all missing.

    The second list has the names of OpenInference's packages.
    """
    libraries = [name.removesuffix("-core") for name in _LIBRARIES if is_installed(name)]
    available = {candidate.library for candidate in instrumentations}
    missing = [library for library in libraries if library.replace("-", "_") not in available]
    is_silent = len(missing) == len(libraries) and not any(map(is_installed, _TRACING_LIBRARIES))
    return missing if is_silent else [], [f"openinference-instrumentation-{library}" for library in missing]


def install_command(libraries: Iterable[str]) -> str:
    """Return the command that installs the instrumentations of libraries."""
    extras = sorted(_OWN_EXTRAS.intersection(libraries))
    packages = [f"'mlflow-otlp-exporter[{','.join(extras)}]'"] if extras else []
    packages += [f"openinference-instrumentation-{library}" for library in libraries if library not in _OWN_EXTRAS]
    return f"pip install {' '.join(packages)}"


def is_distribution_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def instrument(choice: bool | Sequence[str], provider: TracerProvider) -> list[str]:
    """Enable instrumentations; never raises. Returns library and package of each that was enabled, for the log."""
    if choice is False:
        return []
    disabled = [name for name in os.environ.get(_DISABLED_VARIABLE, "").split(",") if name.strip()]
    instrumentations = find_instrumentations()
    enabled: list[str] = []
    clients = ClientTracerProvider(provider)
    for candidates in select_instrumentations(instrumentations, choice, disabled):
        if any(_is_active(candidate) for candidate in candidates):
            continue
        for candidate in candidates:
            is_client = candidate.library in CLIENT_LIBRARIES
            if _activate(candidate, clients if is_client else provider):
                enabled.append(f"{candidate.library} ({candidate.package})")
                break
    silent, _ = find_missing_instrumentations(instrumentations, is_distribution_installed)
    if silent:
        logger.warning(
            "No instrumentation of %s is installed, so its calls create no spans. Run `%s`; auto_instrument=False "
            "silences this. [%s]",
            ", ".join(silent),
            install_command(silent),
            MessageCode.INSTRUMENTATION_MISSING,
        )
    if choice is not True:
        libraries = {candidate.library for candidate in instrumentations}
        if unknown := [name for name in choice if normalize_library_name(name.removeprefix("-")) not in libraries]:
            logger.warning(
                "No instrumentation of %s (auto_instrument) is installed. Installed: %s. [%s]",
                ", ".join(unknown),
                ", ".join(sorted(libraries)) or "none",
                MessageCode.INSTRUMENTATION_MISSING,
            )
    return enabled


def _is_active(candidate: Instrumentation) -> bool:
    module, _, attribute = candidate.value.partition(":")
    # A module that was never imported cannot be active, and an import takes time.
    instrumentor_class = getattr(sys.modules.get(module), attribute, None)
    try:
        return instrumentor_class is not None and bool(
            getattr(instrumentor_class(), "is_instrumented_by_opentelemetry", False)
        )
    except Exception:  # noqa: BLE001 - code of others
        return False


def _activate(candidate: Instrumentation, provider: TracerProvider) -> bool:
    try:
        if conflict := _find_conflict(candidate):
            logger.debug("Skipped instrumentation %s: %s", candidate.package, conflict)
            return False
        instrumentor: Any = candidate.entry_point.load()()
        # The instrumentation's own check logs an error for each library that is not installed; it was done above.
        instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
        if candidate.library == "langchain":
            mark_langchain_calls()
    except ModuleNotFoundError as error:
        logger.debug("Skipped instrumentation %s: %s", candidate.package, error)
        return False
    except Exception as error:  # noqa: BLE001 - a broken instrumentation must not affect the others
        logger.warning(
            "Instrumentation %s failed: %s: %s. Other instrumentations are unaffected. [%s]",
            candidate.package,
            type(error).__name__,
            error,
            MessageCode.INSTRUMENTATION_FAILED,
        )
        return False
    return True


def _find_conflict(candidate: Instrumentation) -> str | None:
    """Return the reason if none of the instrumented packages is installed, or one in a version that does not fit.

    OpenTelemetry's check requires all of them. OpenInference's instrumentation of LlamaIndex names one that few have.
    """
    from packaging.requirements import Requirement  # a dependency of every instrumentation, not of this library

    dist = candidate.entry_point.dist
    texts = dist.requires if dist is not None else None
    conflict, fits = None, False
    for requirement in (Requirement(text) for text in texts or () if "instruments" in text):
        extras = [extra for extra in _EXTRAS if requirement.marker and requirement.marker.evaluate({"extra": extra})]
        if not extras:
            continue
        try:
            installed_version = version(requirement.name)
        except PackageNotFoundError:
            conflict = conflict or f"{requirement.name} is not installed"
            continue
        if requirement.specifier.contains(installed_version):
            fits = True
        elif extras == ["instruments"]:
            return f"{requirement.name} {installed_version} is installed, but {requirement} is required"
        else:
            conflict = f"{requirement.name} {installed_version} is installed, but {requirement} is required"
    return None if fits else conflict
