"""Modules that others replace after `configure()`: gevent and eventlet in tests/matrix/test_greenlets.py, uWSGI."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.certificates import TlsServer, self_signed
from support.scripted_server import ScriptedServer


def run(url: str, code: str, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_ID": "1", **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    ).stderr


def names(server: ScriptedServer) -> Counter[str]:
    return Counter(span.name for request in server.to("/v1/traces") for span in request.spans())


# As gevent and eventlet do.
REPLACED_TLS = """
import ssl
from opentelemetry import trace
from mlflow_otlp_exporter import configure
telemetry = configure()
original = ssl.SSLContext
class SSLContext(original): pass
for name in ("options", "verify_flags", "verify_mode", "minimum_version", "maximum_version"):
    set_value = getattr(super(original, original), name).__set__
    setattr(SSLContext, name, property(getattr(original, name).fget, set_value))
ssl.SSLContext = SSLContext
trace.get_tracer("app").start_span("sent").end()
assert telemetry.flush(20)
"""


@pytest.mark.parametrize("is_verified", [True, False])
def test_tls_class_that_is_replaced_after_the_start_is_used(
    scripted_server: ScriptedServer, tmp_path: Path, is_verified: bool
) -> None:
    certificate = self_signed(tmp_path, "certificate")
    name = "MLFLOW_TRACKING_SERVER_CERT_PATH" if is_verified else "MLFLOW_TRACKING_INSECURE_TLS"
    with TlsServer(certificate, scripted_server.url) as server:
        run(server.url, REPLACED_TLS, **{name: str(certificate.file) if is_verified else "true"})
    assert names(scripted_server) == {"sent": 1}


def test_tls_class_that_is_replaced_still_verifies_certificates(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    with TlsServer(self_signed(tmp_path, "certificate"), scripted_server.url) as server:
        code = REPLACED_TLS.replace("assert", "telemetry.exporter.stats()\nresult =") + "assert not result.delivered\n"
        assert "MLO-204" in run(server.url, code)
    assert names(scripted_server) == {}


UWSGI = """
import os, sys, threading, time, types
sys.modules["uwsgi"] = uwsgi = types.ModuleType("uwsgi")  # before the import of the library, as in uWSGI
uwsgi.has_threads, uwsgi.worker_id, uwsgi.mule_id, uwsgi.i_am_the_spooler = {}, lambda: 0, lambda: 0, lambda: 0
from opentelemetry import trace
from mlflow_otlp_exporter import configure
telemetry = configure()
tracer = trace.get_tracer("app")
tracer.start_span("master").end()
assert threading.active_count() == 1
"""
# A fork without Python's hooks: the process id changes, and nothing else.
WORKER = """
pid = os.getpid()
os.getpid = lambda: pid + 1
uwsgi.worker_id = lambda: 1
for name in ("first", "second"):
    tracer.start_span(name).end()
    while telemetry.stats().delivered < (2 if name == "first" else 3): time.sleep(0.01)
"""


@pytest.mark.parametrize("spool", ["true", "false"])
def test_uwsgi_master_starts_no_thread(scripted_server: ScriptedServer, spool: str) -> None:
    code = UWSGI.format(1) + ("os._exit(0)" if spool == "true" else "")  # the master runs no exit handlers
    assert run(scripted_server.url, code, MLFLOW_OTLP_SPOOL=spool) == ""
    files = list(Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/*.otlp"))
    assert (names(scripted_server), len(files)) == (({}, 1) if spool == "true" else ({"master": 1}, 0))


@pytest.mark.parametrize("has_threads", [0, 1])
def test_uwsgi_worker_that_is_forked_without_hooks_sends_its_own_spans(
    scripted_server: ScriptedServer, has_threads: int
) -> None:
    output = run(scripted_server.url, UWSGI.format(has_threads) + WORKER)
    assert names(scripted_server) == {"master": 1, "first": 1, "second": 1}
    assert output.count("MLO-716") == (not has_threads)
