"""The command line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


COMMANDS = {
    "settings": "settings",
    "doctor": "doctor",
    "spool": "spool status",
    "send": "send --test",
    "collector-config": "collector-config",
    "help": "--help",
    "version": "--version",
}


@pytest.fixture(params=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """PYTHONUNBUFFERED decides whether a failed write raises in print() or in the last flush."""
    if request.param == "buffered":
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    else:
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    return str(request.param)


def run_with(arguments: str, *, stdout: int, stderr: int = subprocess.PIPE) -> tuple[int, str]:
    command = [sys.executable, "-m", "mlflow_otlp_exporter", *arguments.split()]
    done = subprocess.run(command, stdout=stdout, stderr=stderr, text=True, timeout=60, check=False)
    return done.returncode, done.stderr or ""


@contextmanager
def broken_pipe() -> Iterator[int]:
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextmanager
def full_disk() -> Iterator[int]:
    full = os.open("/dev/full", os.O_WRONLY)
    yield full
    os.close(full)


# In newer releases of Python, argparse ignores a failed write of --help and --version where output is unbuffered.
def expected_status(command: str, buffering: str) -> tuple[int, ...]:
    return (0, 1) if command in ("help", "version") and buffering == "unbuffered" else (1,)


@pytest.fixture
def mlflow_like(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server for the commands, and a spool on disk, so that each command prints something to stdout."""
    scripted_server.answer_with("/version", lambda _: Answer(200, body=b"3.17.2"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")


@pytest.mark.usefixtures("mlflow_like")
@pytest.mark.parametrize("command", COMMANDS)
def test_command_with_closed_stdout_pipe_ends_silently(command: str, buffering: str) -> None:
    with broken_pipe() as stdout:
        status, stderr = run_with(COMMANDS[command], stdout=stdout)
    assert status in expected_status(command, buffering)
    assert stderr == ""


@pytest.mark.usefixtures("mlflow_like")
@pytest.mark.parametrize("command", ["settings", "version"])
def test_command_with_full_stdout_ends_with_one_message(command: str, buffering: str) -> None:
    with full_disk() as stdout:
        status, stderr = run_with(COMMANDS[command], stdout=stdout)
    assert status in expected_status(command, buffering)
    assert stderr in (("",) if status == 0 else ("mlflow-otlp: [Errno 28] No space left on device\n",))


@pytest.mark.usefixtures("mlflow_like", "buffering")
def test_command_with_broken_stdout_and_stderr_ends_with_1() -> None:
    with broken_pipe() as pipe:
        assert run_with("settings", stdout=pipe, stderr=pipe) == (1, "")
    with full_disk() as full:
        assert run_with("settings", stdout=full, stderr=full) == (1, "")


@pytest.mark.usefixtures("mlflow_like", "buffering")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_command_without_standard_streams_ends_with_0(closed: str) -> None:
    shell = f'"$0" -m mlflow_otlp_exporter settings {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("mlflow_like", "buffering")
def test_wrong_command_line_with_broken_stderr_ends_without_traceback() -> None:
    with broken_pipe() as stderr:
        status, _ = run_with("nonsense", stdout=subprocess.DEVNULL, stderr=stderr)
    assert status in (1, 2)


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
    assert exporter.stats().dropped == 1
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
