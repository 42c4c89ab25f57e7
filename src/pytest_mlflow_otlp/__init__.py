"""Pytest plugin: the fixture `mlflow_traces` records the traces of the code under test.

A package of its own that imports nothing but pytest, so that the plugin costs test runs nothing that do not use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mlflow_otlp_exporter.testing import Recording

_MARKER = "mlflow_traces(**arguments): arguments of configure() for the fixture mlflow_traces"
# Settings of the developer's machine that would change what is recorded, or write to its disk.
_VARIABLES = {"MLFLOW_OTLP_ENABLED": "true", "OTEL_SDK_DISABLED": "", "MLFLOW_OTLP_SPOOL": "false"}


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def mlflow_traces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """Record the traces of the test, in memory and without a connection to another machine.

    `configure()` is called before the test, with the arguments of the marker `mlflow_traces`. If the code under test
    calls it, too, its spans are recorded, whatever server it names.
    """
    from mlflow_otlp_exporter.testing import recording

    for name, value in _VARIABLES.items():
        monkeypatch.setenv(name, value)
    marker = request.node.get_closest_marker("mlflow_traces")
    with recording(**(marker.kwargs if marker is not None else {})) as recorded:
        yield recorded
