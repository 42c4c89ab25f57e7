"""Tests of a user under pytest. The variable APP_END says how they end."""

import os
import signal

import pytest
from ends_work import work

from mlflow_otlp_exporter import configure

END = os.environ["APP_END"]


@pytest.fixture(scope="session", autouse=True)
def telemetry() -> None:
    configure()


@pytest.mark.parametrize("number", range(4))
def test_answer(number: int) -> None:
    work()


def test_end() -> None:
    work()
    assert END != "exception"
    if END == "pytest.exit":
        pytest.exit("end", returncode=3)
    if END == "signal":
        signal.pause()
