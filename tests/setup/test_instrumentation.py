"""Instrumentations are found by their entry points, one for each library, each on its own."""

import sys
import types
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import configure, shutdown
from mlflow_otlp_exporter._internal.setup import instrumentation as instrumentation_module
from mlflow_otlp_exporter._internal.setup.instrumentation import (
    Instrumentation,
    instrument,
    library_of,
    priority_of,
    select_instrumentations,
)
from support.scripted_server import ScriptedServer


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("openai", "openai"),
        ("openai-v2", "openai"),
        ("genai_openai", "openai"),
        ("genai-openai-agents", "openai_agents"),
        ("llamaindex", "llama_index"),
        ("LlamaIndex", "llama_index"),
        ("google_generativeai", "google_genai"),
        ("langchain_instrumentor", "langchain"),
        ("redis", "redis"),
    ],
)
def test_one_name_for_a_library(name: str, library: str) -> None:
    assert library_of(name) == library


@pytest.mark.parametrize(
    ("value", "distribution", "rank"),
    [
        ("openinference.instrumentation.openai:OpenAIInstrumentor", "openinference-instrumentation-openai", 0),
        ("opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor", "opentelemetry-instrumentation-openai-v2", 1),
        ("opentelemetry.instrumentation.genai.openai:X", "opentelemetry-instrumentation-genai-openai", 1),
        ("opentelemetry.instrumentation.openai:OpenAIInstrumentor", "opentelemetry-instrumentation-openai", 2),
        ("vendor.genai:X", "vendor", 2),
    ],
)
def test_order(value: str, distribution: str, rank: int) -> None:
    assert priority_of(value, distribution) == rank


def candidate(name: str, value: str, rank: int = 2) -> Instrumentation:
    return Instrumentation(library_of(name), name, value, rank, EntryPoint(name, value, "opentelemetry_instrumentor"))


INSTALLED = [
    candidate("openai", "opentelemetry.instrumentation.openai:X", 2),
    candidate("openai", "opentelemetry.instrumentation.openai_v2:X", 1),
    candidate("openai", "openinference.instrumentation.openai:X", 0),
    candidate("langchain", "openinference.instrumentation.langchain:X", 0),
    candidate("requests", "opentelemetry.instrumentation.requests:X", 2),
    candidate("logging", "opentelemetry.instrumentation.logging:X", 2),
]


@pytest.mark.parametrize(
    ("choice", "disabled", "expected"),
    [
        (True, (), ["langchain", "openai", "requests"]),
        (False, (), []),
        (("openai",), (), ["openai"]),
        (("-openai",), (), ["langchain", "requests"]),
        (("openai-v2", "requests", "-requests"), (), ["openai"]),
        (True, ("openai", "requests"), ["langchain"]),
        (("openai",), ("*",), []),
    ],
)
def test_choice(choice: bool | tuple[str, ...], disabled: tuple[str, ...], expected: list[str]) -> None:
    found = select_instrumentations(INSTALLED, choice, disabled)
    assert [several[0].library for several in found] == expected
    for several in found:
        assert [one.rank for one in several] == sorted(one.rank for one in several)


class Instrumentor:
    """What an instrumentation's class does: one object, which remembers whether it is on."""

    error: Exception | None = None
    done: dict[str, Any] | None = None

    @property
    def is_instrumented_by_opentelemetry(self) -> bool:
        return type(self).done is not None

    def instrument(self, **options: Any) -> None:
        if self.error:
            raise self.error
        type(self).done = options


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Instrumentor]]:
    """Three libraries, one with two instrumentations."""
    made: dict[str, type[Instrumentor]] = {}
    found = []
    for name, rank in (("first.openai", 0), ("second.openai", 2), ("only.redis", 2)):
        made[name] = type("X", (Instrumentor,), {})
        module = types.ModuleType(name)
        module.X = made[name]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        found.append(candidate(name.partition(".")[2], f"{name}:X", rank))
    found.append(candidate("absent", "no.such.module:X"))
    monkeypatch.setattr(instrumentation_module, "find_instrumentations", lambda: found)
    return made


def on(installed: dict[str, type[Instrumentor]]) -> list[str]:
    return [name for name, each in installed.items() if each.done is not None]


def test_one_for_each_library(installed: dict[str, type[Instrumentor]]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    assert instrument(choice=True, provider=provider) == ["openai (first.openai)", "redis (only.redis)"]
    assert on(installed) == ["first.openai", "only.redis"]
    done = installed["first.openai"].done
    assert done is not None
    assert done["tracer_provider"] is provider
    assert instrument(choice=True, provider=provider) == []


def test_one_that_fails_is_told_and_the_next_one_is_taken(
    installed: dict[str, type[Instrumentor]], caplog: pytest.LogCaptureFixture
) -> None:
    installed["first.openai"].error = RuntimeError("no")
    instrument(choice=True, provider=TracerProvider(shutdown_on_exit=False))
    assert on(installed) == ["second.openai", "only.redis"]
    assert "first.openai could not be switched on: RuntimeError: no" in caplog.text
    assert "no.such.module" not in caplog.text


def test_library_that_somebody_has_instrumented_is_left_alone(installed: dict[str, type[Instrumentor]]) -> None:
    installed["second.openai"].done = {}
    assert instrument(choice=True, provider=TracerProvider(shutdown_on_exit=False)) == ["redis (only.redis)"]
    assert installed["first.openai"].done is None


def test_name_of_none_is_told(installed: dict[str, type[Instrumentor]], caplog: pytest.LogCaptureFixture) -> None:
    instrument(choice=("openia",), provider=TracerProvider(shutdown_on_exit=False))
    assert on(installed) == []
    assert "no instrumentation of openia is installed (absent, openai, redis)" in caplog.text


def test_configure_switches_them_on_and_says_so(
    installed: dict[str, type[Instrumentor]],
    scripted_server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "redis")
    provider = TracerProvider(shutdown_on_exit=False)
    for _ in range(2):
        configure(tracking_uri=scripted_server.url, experiment_id=1, auto_instrument=True, tracer_provider=provider)
    assert caplog.text.count("instrumented: openai (first.openai) [MLO-802]\n") == 1
    assert on(installed) == ["first.openai"]
    shutdown()
    provider.shutdown()


def test_what_is_installed_here_is_found() -> None:
    found = {each.library: each for each in instrumentation_module.find_instrumentations()}
    assert found["langchain"].rank == 0
    assert found["langchain"].package.startswith("openinference-instrumentation-langchain ")
    assert found["requests"].rank == 2
