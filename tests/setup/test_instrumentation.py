"""Instrumentations are found by their entry points; one per library is enabled."""

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import configure, shutdown
from mlflow_otlp_exporter._internal.setup import instrumentation as instrumentation_module
from mlflow_otlp_exporter._internal.setup.instrumentation import (
    Instrumentation,
    get_priority,
    instrument,
    normalize_library_name,
    select_instrumentations,
)
from mlflow_otlp_exporter._internal.setup.observed_calls import ClientTracerProvider
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
def test_library_name_is_normalized(name: str, library: str) -> None:
    assert normalize_library_name(name) == library


@pytest.mark.parametrize(
    ("value", "distribution", "priority"),
    [
        ("openinference.instrumentation.openai:OpenAIInstrumentor", "openinference-instrumentation-openai", 0),
        ("opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor", "opentelemetry-instrumentation-openai-v2", 1),
        ("opentelemetry.instrumentation.genai.openai:X", "opentelemetry-instrumentation-genai-openai", 1),
        ("opentelemetry.instrumentation.openai:OpenAIInstrumentor", "opentelemetry-instrumentation-openai", 2),
        ("vendor.genai:X", "vendor", 2),
    ],
)
def test_priority_by_package(value: str, distribution: str, priority: int) -> None:
    assert get_priority(value, distribution) == priority


def candidate(name: str, value: str, priority: int = 2) -> Instrumentation:
    return Instrumentation(
        normalize_library_name(name), name, value, priority, EntryPoint(name, value, "opentelemetry_instrumentor")
    )


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
def test_select_instrumentations_by_choice(
    choice: bool | tuple[str, ...], disabled: tuple[str, ...], expected: list[str]
) -> None:
    selected = select_instrumentations(INSTALLED, choice, disabled)
    assert [candidates[0].library for candidates in selected] == expected
    for candidates in selected:
        priorities = [candidate.priority for candidate in candidates]
        assert priorities == sorted(priorities)


class Instrumentor:
    """A minimal instrumentor, which remembers whether it is active."""

    error: Exception | None = None
    options: dict[str, Any] | None = None

    @property
    def is_instrumented_by_opentelemetry(self) -> bool:
        return type(self).options is not None

    def instrument(self, **options: Any) -> None:
        if self.error:
            raise self.error
        type(self).options = options


@pytest.fixture
def instrumentors(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Instrumentor]]:
    """Three installed instrumentations of two libraries, and one whose library is missing."""
    classes: dict[str, type[Instrumentor]] = {}
    instrumentations = []
    for name, priority in (("first.openai", 0), ("second.openai", 2), ("only.redis", 2)):
        classes[name] = type("X", (Instrumentor,), {})
        module = types.ModuleType(name)
        module.X = classes[name]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        instrumentations.append(candidate(name.partition(".")[2], f"{name}:X", priority))
    instrumentations.append(candidate("absent", "no.such.module:X"))
    monkeypatch.setattr(instrumentation_module, "find_instrumentations", lambda: instrumentations)
    return classes


def active_names(instrumentors: dict[str, type[Instrumentor]]) -> list[str]:
    return [name for name, instrumentor in instrumentors.items() if instrumentor.options is not None]


def test_instrument_enables_one_per_library(instrumentors: dict[str, type[Instrumentor]]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    assert instrument(choice=True, provider=provider) == ["openai (first.openai)", "redis (only.redis)"]
    assert active_names(instrumentors) == ["first.openai", "only.redis"]
    client, other = instrumentors["first.openai"].options, instrumentors["only.redis"].options
    assert client is not None
    assert other is not None
    assert isinstance(client["tracer_provider"], ClientTracerProvider)
    assert other["tracer_provider"] is provider
    assert instrument(choice=True, provider=provider) == []


def test_failing_instrumentation_is_logged_and_the_next_one_is_enabled(
    instrumentors: dict[str, type[Instrumentor]], caplog: pytest.LogCaptureFixture
) -> None:
    instrumentors["first.openai"].error = RuntimeError("no")
    instrument(choice=True, provider=TracerProvider(shutdown_on_exit=False))
    assert active_names(instrumentors) == ["second.openai", "only.redis"]
    assert "Instrumentation first.openai failed: RuntimeError: no" in caplog.text
    assert "no.such.module" not in caplog.text


def test_instrumented_library_is_skipped(instrumentors: dict[str, type[Instrumentor]]) -> None:
    instrumentors["second.openai"].options = {}
    assert instrument(choice=True, provider=TracerProvider(shutdown_on_exit=False)) == ["redis (only.redis)"]
    assert instrumentors["first.openai"].options is None


def test_unknown_instrumentation_name_is_logged(
    instrumentors: dict[str, type[Instrumentor]], caplog: pytest.LogCaptureFixture
) -> None:
    instrument(choice=("openia",), provider=TracerProvider(shutdown_on_exit=False))
    assert active_names(instrumentors) == []
    message = "No instrumentation of openia (auto_instrument) is installed. Installed: absent, openai, redis. [MLO-705]"
    assert message in caplog.text


def test_configure_enables_instrumentations_and_logs_them_once(
    instrumentors: dict[str, type[Instrumentor]],
    scripted_server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "redis")
    provider = TracerProvider(shutdown_on_exit=False)
    for _ in range(2):
        configure(tracking_uri=scripted_server.url, experiment_id=1, auto_instrument=True, tracer_provider=provider)
    assert caplog.text.count("Instrumented openai (first.openai) [MLO-802]\n") == 1
    assert active_names(instrumentors) == ["first.openai"]
    shutdown()
    provider.shutdown()


def test_find_instrumentations_reads_installed_packages() -> None:
    installed = {candidate.library: candidate for candidate in instrumentation_module.find_instrumentations()}
    assert installed["langchain"].priority == 0
    assert installed["langchain"].package.startswith("openinference-instrumentation-langchain ")
    assert installed["requests"].priority == 2


@pytest.mark.parametrize(
    ("requirements", "is_enabled"),
    [
        (["openai>=1; extra == 'instruments'"], True),
        (["openai>=1000; extra == 'instruments'"], False),
        (["absent; extra == 'instruments'"], False),
        (["absent; extra == 'instruments'", "openai>=1; extra == 'instruments'"], True),
        (["requests>=1; extra == 'instruments'", "openai>=1000; extra == 'instruments'"], False),
        (["absent; extra == 'instruments-any'", "openai>=1; extra == 'instruments-any'"], True),
        (["openai>=1000; extra == 'instruments-any'", "requests>=1; extra == 'instruments-any'"], True),
        (["openai>=1000; extra == 'instruments-any'", "absent; extra == 'instruments-any'"], False),
        (["absent; extra == 'test'"], True),
        ([], True),
    ],
)
def test_instrumentation_is_enabled_if_instrumented_packages_fit(
    requirements: list[str], is_enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "vendor_instrumentation-1.0.dist-info"
    information.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: vendor-instrumentation", "Version: 1.0"]
    (information / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requirements)]))
    (information / "entry_points.txt").write_text("[opentelemetry_instrumentor]\nvendor = vendor_module:X\n")
    module = types.ModuleType("vendor_module")
    module.X = type("X", (Instrumentor,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vendor_module", module)
    monkeypatch.syspath_prepend(tmp_path)
    enabled = instrument(choice=["vendor"], provider=TracerProvider(shutdown_on_exit=False))
    assert enabled == (["vendor (vendor-instrumentation 1.0)"] if is_enabled else [])
