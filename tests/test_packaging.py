"""What is installed: names, entry points, weight."""

import importlib.metadata
import importlib.resources
import subprocess
import sys

import mlflow_otlp_exporter
from mlflow_otlp_exporter._zero_code import ZeroCodeSpanExporter

DISTRIBUTION = "mlflow-otlp-exporter"


def test_version_is_the_distributions() -> None:
    assert mlflow_otlp_exporter.__version__ == importlib.metadata.version(DISTRIBUTION)


def test_public_names_exist_are_sorted_and_say_where_they_live() -> None:
    names = mlflow_otlp_exporter.__all__
    assert names == sorted(names)
    for name in names:
        found = getattr(mlflow_otlp_exporter, name)
        assert not isinstance(found, type) or found.__module__ == "mlflow_otlp_exporter"


def test_four_dependencies_with_floors_only() -> None:
    needed = [each for each in importlib.metadata.requires(DISTRIBUTION) or [] if "extra ==" not in each]
    assert {each.partition(">=")[0] for each in needed} == {
        "opentelemetry-sdk",
        "opentelemetry-exporter-otlp-proto-http",
        "openinference-semantic-conventions",
        "requests",
    }
    assert not any(sign in each for each in needed for sign in ("<", "=="))


def test_entry_points() -> None:
    (exporter,) = importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name="mlflow")
    assert exporter.load() is ZeroCodeSpanExporter
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="mlflow-otlp")
    assert script.value == "mlflow_otlp_exporter.cli:main"


def test_is_typed() -> None:
    assert importlib.resources.files("mlflow_otlp_exporter").joinpath("py.typed").is_file()


def test_import_loads_neither_mlflow_nor_an_instrumentation() -> None:
    code = (
        "import sys; from mlflow_otlp_exporter import MLflowSpanExporter\n"
        "heavy = ('mlflow', 'openinference', 'opentelemetry.instrumentation', 'langchain_core')\n"
        "print([name for name in sys.modules if name in heavy or name.startswith('openinference.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
