"""No credential in anything that a process prints, logs at DEBUG or stores, wherever the credential was configured."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.markers import SECRET, has_marker
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, ScriptedServer

APP = """
import http.client, logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s %(args)s")
http.client.HTTPConnection.debuglevel = 1
from mlflow_otlp_exporter import ConfigurationError, configure
try:
    telemetry = configure(auto_instrument=False, experiment_id="1")
except ConfigurationError as error:
    print(repr(error), str(error))
    sys.exit()
with telemetry.tracer_provider.get_tracer("x").start_as_current_span("call"):
    pass
print(telemetry, telemetry.flush(0.5), vars(telemetry))
telemetry.shutdown(0.5)
"""
JWT = f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.x"
SET_UPS: dict[str, Callable[[str], dict[str, str]]] = {
    "user and password in the URI": lambda host: {"MLFLOW_TRACKING_URI": f"http://ada:{SECRET}@{host}"},
    "token in the URI": lambda host: {"MLFLOW_TRACKING_URI": f"http://{SECRET}@{host}"},
    "token as user in the URI": lambda host: {"MLFLOW_TRACKING_URI": f"http://{SECRET}:x-oauth-basic@{host}"},
    "URI without scheme": lambda host: {"MLFLOW_TRACKING_URI": f"ada:{SECRET}@{host}"},
    "endpoint without scheme": lambda host: {"OTEL_EXPORTER_OTLP_ENDPOINT": f"ada:{SECRET}@{host}"},
    "query of the endpoint": lambda host: {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://{host}{TRACES_PATH}?api_key={SECRET}"
    },
    "header": lambda host: {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{host}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {SECRET};x,api-key={SECRET}",
    },
    "header for another server": lambda host: {
        "MLFLOW_TRACKING_URI": f"http://{host}",
        "OTEL_EXPORTER_OTLP_HEADERS": f'api-key="{SECRET};x',
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": SECRET,
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": f"api-key={SECRET};x",
    },
    "token": lambda host: {"MLFLOW_TRACKING_URI": f"http://{host}", "MLFLOW_TRACKING_TOKEN": JWT},
    "token as token file": lambda host: {"MLFLOW_TRACKING_URI": f"http://{host}", "MLFLOW_TRACKING_TOKEN_FILE": JWT},
    "password": lambda host: {
        "MLFLOW_TRACKING_URI": f"http://{host}",
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": SECRET,
    },
    "proxy": lambda host: {
        "MLFLOW_TRACKING_URI": "http://mlflow.test:5000",
        "HTTP_PROXY": f"http://ada:{SECRET}@{host}",
    },
    "proxy with a slash in its password": lambda host: {
        "MLFLOW_TRACKING_URI": "https://mlflow.test:5000",
        "HTTPS_PROXY": f"http://ada:{SECRET}/x@{host}",
    },
    "SOCKS proxy": lambda host: {
        "MLFLOW_TRACKING_URI": "https://mlflow.test:5000",
        "ALL_PROXY": f"socks5://ada:{SECRET}@{host}",
    },
    "proxy without a port": lambda host: {
        "MLFLOW_TRACKING_URI": "https://mlflow.test:5000",
        "HTTPS_PROXY": f"http://ada:{SECRET}@{host}9999",
    },
}


def run(variables: dict[str, str], folder: Path, *command: str) -> str:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "MLFLOW_OTLP_SPOOL_DIR": str(folder / "spool"),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", SET_UPS)
def test_process_shows_and_stores_no_credential(name: str, scripted_server: ScriptedServer, tmp_path: Path) -> None:
    scripted_server.answer(then=Answer(503) if "token" in name else ACCEPTED)
    scripted_server.answer(path=f"{TRACES_PATH}?api_key={SECRET}", then=ACCEPTED)
    variables = SET_UPS[name](scripted_server.url.removeprefix("http://"))
    output = run(variables, tmp_path, "-c", APP)
    assert "MLO-" in output or "Telemetry" in output
    module = ("-m", "mlflow_otlp_exporter")
    for command in ("settings", "doctor"):
        output += run(variables, tmp_path, *module, command)
    assert not has_marker(output)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    stored = [str(path) + path.read_bytes().decode("latin-1") for path in files]
    assert not [text for text in stored if has_marker(text)]
