"""gevent and eventlet patch the standard library before or after this library is imported, configured and used."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from support.certificates import TlsServer, self_signed
from support.environments import ROOT, environment, read_lock
from support.scripted_server import ScriptedServer

pytestmark = pytest.mark.matrix

APP = """
import sys
library, moment = sys.argv[1:]

def patch(now):
    if now != moment:
        return
    if library == "gevent":
        from gevent import monkey
        monkey.patch_all()
    else:
        import eventlet
        eventlet.monkey_patch()

patch("first")
import threading, time
from opentelemetry import trace
from mlflow_otlp_exporter import configure
patch("imported")
telemetry = configure()
patch("configured")
tracer = trace.get_tracer("app")
tracer.start_span("early").end()
time.sleep(0.02)
patch("span ended")

def work(number):
    for _ in range(3):
        with tracer.start_as_current_span(str(number)):
            time.sleep(0.01)

threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
while telemetry.stats().delivered < 10:  # in the background
    time.sleep(0.01)
tracer.start_span("flushed").end()
assert telemetry.flush(20)
tracer.start_span("at exit").end()
"""
SIGNALLED = """
import os, signal
patch("first")
import threading, time
from opentelemetry import trace
from mlflow_otlp_exporter import configure
configure()
with trace.get_tracer("app").start_as_current_span("root"):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(60)  # in the hub, which must not wait in the signal handler
"""


def run(url: str, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    python = environment("process-ends", read_lock("process-ends"), editable=ROOT)
    return subprocess.run(
        [str(python), "-W", "ignore", "-c", code, *arguments],
        env={**os.environ, "MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_ID": "1", **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def names(server: ScriptedServer) -> Counter[str]:
    return Counter(span.name for request in server.to("/v1/traces") for span in request.spans())


@pytest.mark.parametrize(
    ("library", "moment"),
    [
        *((library, moment) for library in ("gevent", "eventlet") for moment in ("first", "imported", "configured")),
        ("gevent", "span ended"),  # eventlet breaks conditions that exist
    ],
)
def test_patching_at_any_moment_loses_no_span(scripted_server: ScriptedServer, library: str, moment: str) -> None:
    completed = run(scripted_server.url, APP, library, moment)
    assert completed.returncode == 0, completed.stderr
    assert names(scripted_server) == {"early": 1, "0": 3, "1": 3, "2": 3, "flushed": 1, "at exit": 1}


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_patching_after_the_start_allows_tls(scripted_server: ScriptedServer, tmp_path: Path, library: str) -> None:
    certificate = self_signed(tmp_path, "certificate")
    with TlsServer(certificate, scripted_server.url) as server:
        file = str(certificate.file)
        completed = run(server.url, APP, library, "configured", MLFLOW_TRACKING_SERVER_CERT_PATH=file)
    assert completed.returncode == 0, completed.stderr
    assert names(scripted_server).total() == 12


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_sigterm_in_the_hub_sends_what_had_ended(scripted_server: ScriptedServer, library: str) -> None:
    code = APP.partition('\npatch("first")')[0] + SIGNALLED
    completed = run(scripted_server.url, code, library, "first", MLFLOW_OTLP_LINGER="30")
    assert completed.returncode == -15, completed.stderr
    assert names(scripted_server) == {"root": 1}
