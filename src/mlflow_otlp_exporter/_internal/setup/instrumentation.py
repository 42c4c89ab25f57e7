"""Instrumentations that are installed: found by their entry points, one for each library, and switched on.

The same library may have several: OpenInference's are taken before those that follow OpenTelemetry's conventions for
generative AI, these before others, as MLflow and its console understand them in this order.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger

_GROUPS = ("openinference_instrumentor", "opentelemetry_instrumentor")
_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
# They make no spans.
_NOT_FOR_TRACES = frozenset({"logging", "system_metrics"})
_SAME = {
    "llamaindex": "llama_index",
    "openai_agents_v2": "openai_agents",
    "agents": "openai_agents",
    "google_generativeai": "google_genai",
    "vertex_ai": "vertexai",
    "pydanticai": "pydantic_ai",
    "mistral": "mistralai",
    "aws_bedrock": "bedrock",
}
_ADDED = re.compile(r"^(?:genai|gen_ai)_|_(?:v\d+|instrumentor|genai)$")


@dataclass(frozen=True)
class Instrumentation:
    """An instrumentation that is installed.

    Attributes:
        library: What it instruments, by one name for all that instrument the same.
        name: What its package calls it.
        value: Module and class.
        rank: 0 for OpenInference's, 1 for generative AI's conventions, 2 for others.
        entry_point: Where it was found.
    """

    library: str
    name: str
    value: str
    rank: int
    entry_point: EntryPoint

    @property
    def package(self) -> str:
        """The distribution that it comes from, for people."""
        dist = self.entry_point.dist
        return f"{dist.name} {dist.version}" if dist is not None else self.value.partition(":")[0]


def library_of(name: str) -> str:
    """The library that an instrumentation of this name is for."""
    found = name.strip().lower().replace("-", "_")
    while (shorter := _ADDED.sub("", found)) != found:
        found = shorter
    return _SAME.get(found, found)


def priority_of(value: str, distribution: str) -> int:
    """How early an instrumentation is taken, 0 first."""
    if value.startswith("openinference."):
        return 0
    genai = re.search(r"genai|gen_ai|[_-]v2\b", f"{value.partition(':')[0]} {distribution}")
    return 1 if genai and value.startswith("opentelemetry.") else 2


def find_instrumentations() -> list[Instrumentation]:
    """All that are installed, each once."""
    found: dict[str, Instrumentation] = {}
    for group in _GROUPS:
        for point in entry_points(group=group):
            distribution = point.dist.name if point.dist is not None else ""
            rank = priority_of(point.value, distribution)
            found.setdefault(point.value, Instrumentation(library_of(point.name), point.name, point.value, rank, point))
    return list(found.values())


def select_instrumentations(
    found: Iterable[Instrumentation], choice: bool | Sequence[str], disabled: Iterable[str] = ()
) -> list[list[Instrumentation]]:
    """Which are to be tried, library by library, the best of each first.

    Args:
        found: What is installed.
        choice: True for all, False for none, names of some, or `-name` for all but some.
        disabled: Names that another setting forbids; `*` forbids all.
    """
    if choice is False:
        return []
    words = [] if choice is True else list(choice)
    left_out = {library_of(word[1:]) for word in words if word.startswith("-")}
    left_out |= {library_of(word) for word in disabled}
    wanted = {library_of(word) for word in words if not word.startswith("-")}
    if "*" in left_out:
        return []
    libraries: dict[str, list[Instrumentation]] = {}
    for candidate in found:
        library = candidate.library
        if library in left_out or (wanted and library not in wanted) or library in _NOT_FOR_TRACES:
            continue
        libraries.setdefault(library, []).append(candidate)
    return [sorted(each, key=lambda one: (one.rank, one.value)) for _, each in sorted(libraries.items())]


def instrument(choice: bool | Sequence[str], provider: TracerProvider) -> list[str]:
    """Switches instrumentations on; never raises.

    Args:
        choice: As for `chosen`.
        provider: The provider that they are to use.

    Returns:
        For each that is on, the library and the package, for people.
    """
    if choice is False:
        return []
    disabled = [word for word in os.environ.get(_DISABLED, "").split(",") if word.strip()]
    found = find_instrumentations()
    done: list[str] = []
    for several in select_instrumentations(found, choice, disabled):
        if any(_is_on(candidate) for candidate in several):
            continue
        for candidate in several:
            if _switched_on(candidate, provider):
                done.append(f"{candidate.library} ({candidate.package})")
                break
    if choice is not True:
        known = {candidate.library for candidate in found}
        if unknown := [word for word in choice if library_of(word.removeprefix("-")) not in known]:
            installed = ", ".join(sorted(known)) or "none"
            said = "auto_instrument: no instrumentation of %s is installed (%s) [%s]"
            logger.warning(said, ", ".join(unknown), installed, MessageCode.INSTRUMENTATION_MISSING)
    return done


def _is_on(candidate: Instrumentation) -> bool:
    """Whether somebody has switched it on already; what was never imported was not."""
    module, _, attribute = candidate.value.partition(":")
    made = getattr(sys.modules.get(module), attribute, None)
    try:
        return made is not None and bool(getattr(made(), "is_instrumented_by_opentelemetry", False))
    except Exception:  # noqa: BLE001 - code of others
        return False


def _switched_on(candidate: Instrumentation, provider: TracerProvider) -> bool:
    try:
        if conflict := _conflict(candidate):
            logger.debug("%s is left out: %s", candidate.package, conflict)
            return False
        instrumentor: Any = candidate.entry_point.load()()
        # What it needs was checked above: its own check logs an error for each library that is not installed.
        instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    except ModuleNotFoundError as error:
        logger.debug("%s is left out: %s", candidate.package, error)
        return False
    except Exception as error:  # noqa: BLE001 - one that fails must not keep the others from working
        said, kind = "%s could not be switched on: %s: %s [%s]", type(error).__name__
        logger.warning(said, candidate.package, kind, error, MessageCode.INSTRUMENTATION_FAILED)
        return False
    return True


def _conflict(candidate: Instrumentation) -> Any:
    from opentelemetry.instrumentation.dependencies import (  # installed if any instrumentation is
        get_dist_dependency_conflicts,
    )

    dist = candidate.entry_point.dist
    return get_dist_dependency_conflicts(dist) if dist is not None else None
