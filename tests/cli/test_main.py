"""The command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter, __version__
from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from support.scripted_server import ACCEPTED, Answer, ScriptedServer
from support.spans import finished


def test_settings_are_shown_with_their_sources_and_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    assert main_module.main(["settings"]) == 0
    shown = capsys.readouterr().out
    table, _, whose = shown.partition("\n\n")
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in table.splitlines()}
    assert rows["target"] == ["http://m/v1/traces", "environment variable MLFLOW_TRACKING_URI"]
    assert rows["token"] == ["***", "environment variable MLFLOW_TRACKING_TOKEN"]
    assert rows["timeout"] == ["10.0", "default"]
    assert rows["spool"][0] == rows["create_experiment"][0] == "True"  # as in an app with configure()
    assert whose.startswith("These are configure()'s.")
    assert "planted" not in shown


@pytest.mark.parametrize("command", ["settings", "doctor"])
def test_variable_that_is_mistyped_is_told(
    command: str,
    scripted_server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_OTLP_SPOL_DIR", "planted")
    main_module.main([command])
    shown = "".join(capsys.readouterr())
    assert "MLFLOW_OTLP_SPOL_DIR" in shown
    assert "MLFLOW_OTLP_SPOOL_DIR" in shown
    assert "MLO-101" in shown
    assert "planted" not in shown


def test_reader_that_has_seen_enough_is_no_mistake() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "mlflow_otlp_exporter", "settings"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_wrong_setting_ends_with_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert main_module.main(["settings"]) == 2
    assert "MLFLOW_TRACKING_URI is 'databricks'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main_module.main(arguments)
    assert ended.value.code == 2
    assert "usage: mlflow-otlp" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith(__version__)


DOWN = Answer(503, body=b"down")


@pytest.fixture
def spool(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    """A server that is away, two spans that wait for it, and one that it has refused."""
    scripted_server.answer_with("/version", lambda _: Answer(200, body=b"3.17.2"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    body = b'{"detail": "too long a session"}'
    refusal = Answer(400, headers={"Content-Type": "application/json"}, body=body)
    scripted_server.answer(refusal, refusal, refusal, then=DOWN)
    exporter = MLflowSpanExporter(spool=True, timeout=20)
    exporter.export(finished("refused"))
    for name in ("a", "b"):
        exporter.export(finished(name))
    exporter.shutdown()
    assert exporter.stats().refused == 1
    return scripted_server


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main_module.main(["spool", *words]) == status
    return capsys.readouterr().out


def test_spool_status_and_list(spool: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    status = said(capsys, "status")
    assert f"spans for {spool.url}/v1/traces" in status
    assert "(the settings in force here)" in status
    assert "2 spans in 2 requests" in status
    assert "1 spans in 1 files" in status
    assert "none now" in status
    waiting = said(capsys, "list").splitlines()
    assert len(waiting) == 2
    assert all("experiment 1" in line for line in waiting)
    [refused] = said(capsys, "list", "--refused").splitlines()
    assert "too long a session" in refused


@pytest.mark.usefixtures("spool")
def test_spool_status_tells_who_sends(capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    lock = FileLock(folder / "lock")
    assert lock.acquire()
    assert f"process {os.getpid()}" in said(capsys, "status")
    lock.release()


def test_spool_flush(spool: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 spans sent, 2 wait in 2 requests" in said(capsys, "flush", "--timeout", "5", status=1)
    spool.answer(then=ACCEPTED)
    assert "2 spans sent, 0 wait in 0 requests" in said(capsys, "flush")
    assert "0 spans sent, 0 wait" in said(capsys, "flush")


@pytest.mark.usefixtures("spool")
def test_spool_purge_asks_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert "2 spans in 2 files would be removed" in said(capsys, "purge", status=1)
    assert len(said(capsys, "list").splitlines()) == 2
    assert "2 spans in 2 files removed" in said(capsys, "purge", "--yes")
    assert said(capsys, "list") == ""
    assert "1 spans in 1 files removed" in said(capsys, "purge", "--refused", "--yes")
    assert said(capsys, "list", "--refused") == ""
    assert "0 spans in 0 files" in said(capsys, "purge")


def test_spool_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing waits" in said(capsys, "status")
    assert said(capsys, "list") == ""
