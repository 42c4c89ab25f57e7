"""Recorded traces through the gateway, in each protocol, whole and in pieces: as complete as from a process."""

from collections.abc import Iterator, Sequence

import pytest

from support.corpus import GATEWAY_PROTOCOLS, score_in_subprocess
from support.mlflow_server import MLflowServer
from support.trace_checks import CheckResult

pytestmark = [pytest.mark.matrix, pytest.mark.needs("node")]
MAX_DIFFERENCE_PERCENT = 0.2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def in_process_percent(server: MLflowServer) -> float:
    return measure_percent(score_in_subprocess(server.uri, ["whole"])["whole"])


def measure_percent(results: Sequence[CheckResult]) -> float:
    recoverable_results = [result for result in results if not result.unrecoverable]
    assert len(recoverable_results) > 2000
    return 100 * sum(result.passed for result in recoverable_results) / len(recoverable_results)


@pytest.mark.parametrize("suffix", ["", " in pieces"])
@pytest.mark.parametrize("protocol", GATEWAY_PROTOCOLS)
def test_gateway_shows_what_the_exporter_shows(
    server: MLflowServer, in_process_percent: float, protocol: str, suffix: str
) -> None:
    way = f"gateway {protocol}{suffix}"
    percent = measure_percent(score_in_subprocess(server.uri, [way])[way])
    assert percent >= in_process_percent - MAX_DIFFERENCE_PERCENT
