"""The command line."""

import argparse
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter, __version__, configure, shutdown
from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.cli import spool as spool_command
from mlflow_otlp_exporter._internal.cli.output import has_colors, page_url
from mlflow_otlp_exporter._internal.common.files import FileLock
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, ScriptedServer
from support.spans import make_spans
from support.special_files import SPECIAL_FILES


def test_settings_prints_sources_and_no_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    assert main_module.main(["settings", "--all"]) == 0
    output = capsys.readouterr().out
    table, _, note = output.partition("\n\n")
    names = [line.split()[0] for line in table.splitlines()]
    assert names[:3] == ["target", "mlflow", "token"]  # the changed ones first
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in table.splitlines()}
    assert rows["target"] == ["http://m/v1/traces", "environment variable MLFLOW_TRACKING_URI"]
    assert rows["token"] == ["***", "environment variable MLFLOW_TRACKING_TOKEN"]
    assert rows["timeout"] == ["10.0", "default"]
    assert rows["spool"][0] == rows["create_experiment"][0] == "True"  # like configure()
    assert note.startswith("These are the settings of configure() and `mlflow-otlp run`.")
    assert "planted" not in output


def test_settings_prints_changed_ones_or_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    assert main_module.main(["settings"]) == 0
    table, note, _ = capsys.readouterr().out.split("\n\n")
    assert "timeout" not in table
    assert "other settings have their defaults: mlflow-otlp settings --all" in note
    assert main_module.main(["settings", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["timeout"] == {"name": "timeout", "value": "10.0", "source": "default"}
    assert rows["token"]["value"] == "***"


@pytest.mark.parametrize("command", ["settings", "doctor"])
def test_unknown_variable_is_reported(
    command: str,
    scripted_server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_OTLP_SPOL_DIR", "planted")
    main_module.main([command])
    output = "".join(capsys.readouterr())
    assert "MLFLOW_OTLP_SPOL_DIR" in output
    assert "MLFLOW_OTLP_SPOOL_DIR" in output
    assert "MLO-101" in output
    assert "planted" not in output


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


def test_command_with_wrong_setting_ends_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert main_module.main(["settings"]) == 2
    assert "MLFLOW_TRACKING_URI is 'databricks'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nonsense"], ["spool", "nonsense"], ["send"]])
def test_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main_module.main(arguments)
    assert ended.value.code == 2
    assert "usage: mlflow-otlp" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["spool"]])
def test_no_command_prints_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_module.main(arguments) == 0
    output = capsys.readouterr().out
    assert output.startswith(" ".join(["usage: mlflow-otlp", *arguments]))
    assert "exit status:" in output or arguments


def iter_commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command.prog, command
                yield from iter_commands(command)


@pytest.mark.parametrize(("name", "command"), list(iter_commands(main_module.create_parser())))
def test_command_has_description_and_example(name: str, command: argparse.ArgumentParser) -> None:
    assert command.description
    assert command.description.endswith(".")
    assert name == "mlflow-otlp spool" or (command.epilog and name in command.epilog)


def test_completion_is_offered_to_argcomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[argparse.ArgumentParser] = []
    module = types.ModuleType("argcomplete")
    module.autocomplete = parsers.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "argcomplete", module)
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    assert main_module.main([]) == 0
    assert [parser.prog for parser in parsers] == ["mlflow-otlp"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "0"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (None, {}, False),
    ],
)
def test_has_colors_follows_terminal_and_variables(
    stream: io.StringIO, environment: dict[str, str], expected: bool
) -> None:
    assert has_colors(stream, environment) is expected


def test_doctor_with_forced_color_paints_results_and_collapses_skipped_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main_module.main(["doctor"]) == 1
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    [skipped] = [line for line in plain.splitlines() if line.startswith("skipped")]
    assert skipped.split(None, 1)[1].startswith("tls, server, clock, endpoint")
    assert "Start the server (`mlflow server --port 1`)" in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main_module.main(["doctor"]) == 1
    assert "\x1b[31mFAILED" in capsys.readouterr().out


def test_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith(__version__)


DOWN = Answer(503, body=b"down")


@pytest.fixture
def spool(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    """An unavailable server, two queued spans, and one that the server rejected."""
    scripted_server.answer_with("/version", lambda _: Answer(200, body=b"3.17.2"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    body = b'{"detail": "too long a session"}'
    rejection = Answer(400, headers={"Content-Type": "application/json"}, body=body)
    scripted_server.answer(rejection, rejection, rejection, then=DOWN)
    exporter = MLflowSpanExporter(spool=True, timeout=20)
    exporter.export(make_spans("refused"))
    for name in ("a", "b"):
        exporter.export(make_spans(name))
    exporter.shutdown()
    assert exporter.stats().dropped == 1
    return scripted_server


def run_spool(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main_module.main(["spool", *words]) == status
    return capsys.readouterr().out


def test_spool_status_and_list_show_requests(spool: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    status = run_spool(capsys, "status")
    assert f"spans for {spool.url}/v1/traces" in status
    assert "(current settings)" in status
    assert "2 spans in 2 requests" in status
    assert "  dead letters 1 span in 1 file," in status
    assert "sender       none" in status
    queued = run_spool(capsys, "list").splitlines()
    assert len(queued) == 2
    assert all("experiment 1" in line for line in queued)
    [rejected] = run_spool(capsys, "list", "--refused").splitlines()
    assert "too long a session" in rejected


@pytest.mark.usefixtures("spool")
def test_spool_status_names_the_sending_process(capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    lock = FileLock(folder / "lock")
    assert lock.acquire()
    assert f"process {os.getpid()}" in run_spool(capsys, "status")
    lock.release()


@pytest.mark.usefixtures("spool")
@pytest.mark.parametrize(("create", "reason"), SPECIAL_FILES)
def test_spool_with_special_files_shows_and_purges_the_others(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    create: Callable[[Path], object],
    reason: str,
) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    monkeypatch.chdir(folder)
    request, _ = sorted(folder.glob("*.otlp"))
    (folder / "journal").mkdir(mode=0o700, exist_ok=True)
    for path in (request, folder / "lock", folder / "about.txt", folder / "journal" / "a-1-2.journal"):
        path.unlink(missing_ok=True)
        create(path)
    status = run_spool(capsys, "status")
    assert f"about.txt cannot be read: {reason}" in status
    assert "1 span in 1 request," in status
    lines = run_spool(capsys, "list").splitlines()
    assert len(lines) == 2
    assert f"{request.name}  is skipped: {reason}" in lines
    assert "1 span in 1 file deleted" in run_spool(capsys, "purge", "--yes")


@pytest.mark.parametrize("create", [create for create, _ in SPECIAL_FILES if create is not Path.mkdir])
def test_spool_with_special_files_as_folders_sends_requests(
    spool: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    create: Callable[[Path], object],
) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    monkeypatch.chdir(folder)
    for name in ("refused", "damaged", "journal", "feedback"):
        shutil.rmtree(folder / name, ignore_errors=True)
        create(folder / name)
    assert "2 spans in 2 requests" in run_spool(capsys, "status")
    assert run_spool(capsys, "list", "--dead-letters") == ""
    assert "0 spans in 0 files deleted" in run_spool(capsys, "purge", "--dead-letters", "--yes")
    spool.answer(then=ACCEPTED)
    assert "2 spans sent, 0 queued in 0 requests" in run_spool(capsys, "flush")


@pytest.mark.usefixtures("spool")
def test_spool_output_has_no_control_characters_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    storage = SpoolStorage(SpoolSettings(spool_dir=str(folder.parent)), folder.name, "", ProblemLog())
    span = SpanEncoder().encode(make_spans("a")[0])
    assert storage.append(Destination("\x1b[2J", "a\nb\ud800"), [span])
    (folder / "about.txt").write_bytes(b"spans for \x1b[2J\xff\n" + b"x" * 99)
    storage.dead_letter(Destination(), [span], "no\x1b[2J")
    output = run_spool(capsys, "status") + run_spool(capsys, "list") + run_spool(capsys, "list", "--dead-letters")
    assert "\x1b" not in output
    assert "experiment a\\nb\\ud800 of workspace \\x1b[2J" in output
    assert "  no?[2J" in output
    assert "spans for ?[2J" in output


def test_spool_flush_sends_queued_requests(spool: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 spans sent, 2 queued in 2 requests" in run_spool(capsys, "flush", "--timeout", "5", status=1)
    spool.answer(then=ACCEPTED)
    assert "2 spans sent, 0 queued in 0 requests" in run_spool(capsys, "flush")
    assert "0 spans sent, 0 queued" in run_spool(capsys, "flush")


@pytest.mark.parametrize("creates", [False, True])
def test_spool_flush_creates_only_experiments_that_the_earlier_run_would_have_created(
    scripted_server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    creates: bool,
) -> None:
    json_headers = {"Content-Type": "application/json"}
    missing = Answer(404, headers=json_headers, body=b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No"}')
    created = Answer(200, headers=json_headers, body=b'{"experiment_id": "4"}')
    scripted_server.answer(path="/api/2.0/mlflow/experiments/get-by-name", then=missing)
    scripted_server.answer(path="/api/2.0/mlflow/experiments/create", then=DOWN)
    scripted_server.answer(path="/api/2.0/mlflow/experiments/search", then=missing)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    exporter = MLflowSpanExporter(experiment="agenst", create_experiment=creates, spool=True, timeout=0.5)
    exporter.export(make_spans("a"))
    exporter.shutdown(1000)
    scripted_server.answer(path="/api/2.0/mlflow/experiments/create", then=created)
    scripted_server.answer(then=ACCEPTED)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "agents")
    monkeypatch.setenv("MLFLOW_OTLP_CREATE_EXPERIMENT", "true")
    scripted_server.clear_requests()
    output = run_spool(capsys, "flush", "--timeout", "10", status=0 if creates else 1)
    assert ("1 span sent" in output) is creates
    assert any(request.path.endswith("experiments/create") for request in scripted_server.requests) is creates


@pytest.mark.parametrize("is_missing_first", [True, False])
def test_spool_flush_with_a_missing_experiment_sends_all_other_requests(
    scripted_server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    is_missing_first: bool,
) -> None:
    missing = Answer(
        404, headers={"Content-Type": "application/json"}, body=b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
    )
    for endpoint in ("get-by-name", "search"):
        scripted_server.answer(path=f"/api/2.0/mlflow/experiments/{endpoint}", then=missing)
    scripted_server.answer(then=DOWN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    settings: list[dict[str, str]] = [{"experiment": "agenst"}, {"experiment_id": "1"}]
    for target in settings if is_missing_first else reversed(settings):
        exporter = MLflowSpanExporter(
            experiment=target.get("experiment"),
            experiment_id=target.get("experiment_id"),
            create_experiment=False,
            spool=True,
            timeout=0.5,
        )
        for number in range(20):
            exporter.export(make_spans(f"span {number}"))
        exporter.shutdown(1000)
    scripted_server.answer(then=ACCEPTED)
    caplog.clear()
    assert "20 spans sent, 20 queued" in run_spool(capsys, "flush", status=1)
    [message] = [record.getMessage() for record in caplog.records if "agenst" in record.getMessage()]
    assert "[20 spans]" in message


@pytest.mark.parametrize("source", ["address", "port", "folder"])
def test_spool_flush_from_another_address_sends_its_requests(
    spool: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    name = {"address": spool.url, "port": spool.url.partition("//")[2], "folder": folder.name}[source]
    with ScriptedServer() as other:
        other.answer(then=ACCEPTED)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other.url)
        assert "0 spans sent" in run_spool(capsys, "flush")
        assert f"to send      mlflow-otlp spool flush --from {folder.name}" in run_spool(capsys, "status")
        main_module.main(["doctor", "--json"])
        steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
        assert (steps["spool"]["state"], steps["spool"]["code"]) == ("warning", "MLO-512")
        assert steps["spool"]["cause"].startswith(f"2 spans queued: spans for {spool.url}/v1/traces, sent with the")
        assert f"`mlflow-otlp spool flush --from {folder.name}`" in steps["spool"]["fix"]
        output = run_spool(capsys, "flush", "--from", name)
        assert f"2 spans in 2 files taken over from {name}" in output
        assert "2 spans sent, 0 queued" in output
        sent = [span.name for request in other.to(TRACES_PATH) for span in request.spans()]
        assert sorted(sent) == ["a", "b"]
        assert main_module.main(["spool", "flush", "--from", "http://nowhere:1"]) == 2
        assert "nothing is queued for http://nowhere:1" in capsys.readouterr().err


def test_spool_flush_from_with_more_than_the_limit_leaves_the_newest_requests(
    spool: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    first, second = sorted(folder.glob("*.otlp"))
    spool.answer(path=TRACES_PATH, then=ACCEPTED)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    max_bytes = max(first.stat().st_size, second.stat().st_size)
    monkeypatch.setenv("MLFLOW_OTLP_SPOOL_MAX_BYTES", str(max_bytes))
    output = run_spool(capsys, "flush", "--from", spool.url, status=1)
    assert "1 span in 1 file taken over" in output
    assert f"1 span not taken over, because the spool is full (limit: {max_bytes} bytes, 100000 files). " in output
    assert "Raise MLFLOW_OTLP_SPOOL_MAX_BYTES, or run the command again when these requests are sent." in output
    assert (first.exists(), second.exists()) == (False, True)
    assert "1 span sent, 0 queued" in run_spool(capsys, "flush", "--from", spool.url)


def test_spool_flush_from_takes_feedback(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    telemetry = configure(auto_instrument=False)
    telemetry.log_feedback(TRACE_ID, "helpful", True)
    telemetry.shutdown(1.0)
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    assert len(list((folder / "feedback").glob("*.json"))) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    path = f"/api/3.0/mlflow/traces/tr-{TRACE_ID}/assessments"
    scripted_server.answer(path=path, then=Answer(headers={"Content-Type": "application/json"}, body=b"{}"))
    assert f"to send      mlflow-otlp spool flush --from {folder.name}" in run_spool(capsys, "status")
    output = run_spool(capsys, "flush", "--from", folder.name)
    assert "0 spans in 0 files and 1 feedback file taken over" in output
    assert "1 feedback file sent, 0 still on disk" in output
    assert not list((folder / "feedback").iterdir())


def test_spool_flush_from_sends_spans_of_a_run_without_credential(
    spool: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spool.answer(path=TRACES_PATH, then=ACCEPTED)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    assert "0 spans sent" in run_spool(capsys, "flush")
    assert "2 spans sent, 0 queued" in run_spool(capsys, "flush", "--from", spool.url)
    assert spool.requests[-1].headers["authorization"] == "Bearer planted-token"


def test_spool_flush_from_takes_nothing_that_another_process_sends(
    spool: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    lock = FileLock(folder / "lock")
    assert lock.acquire()
    assert main_module.main(["spool", "flush", "--from", spool.url]) == 2
    assert f"process {os.getpid()} sends these requests" in capsys.readouterr().err
    assert "to send" not in run_spool(capsys, "status")
    lock.release()
    assert len(list(folder.glob("*.otlp"))) == 2


def test_spool_flush_from_takes_journals_of_killed_processes(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    root = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter")
    app = (
        "import os; from mlflow_otlp_exporter import configure; from opentelemetry import trace\n"
        "configure(durability='every-span', auto_instrument=False)\n"
        "trace.get_tracer('killed').start_span('killed').end(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", app], check=False, timeout=60)
    [folder] = root.iterdir()
    assert list((folder / "journal").iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    assert "1 span sent, 0 queued" in run_spool(capsys, "flush", "--from", "127.0.0.1:1")
    assert not list((folder / "journal").iterdir())


def test_send_of_a_spool_file_names_the_command(spool: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    path = next(folder.glob("*.otlp"))
    assert main_module.main(["send", str(path)]) == 2
    message = capsys.readouterr().err
    assert "`mlflow-otlp spool flush`" in message
    assert "[MLO-605]" in message
    assert path.exists()


def test_spool_flush_that_takes_long_shows_progress(
    spool: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_command, "_PROGRESS_SECONDS", 0.1)
    spool.answer(Answer(200, delay=1.0), then=ACCEPTED)
    assert main_module.main(["spool", "flush"]) == 0
    captured = capsys.readouterr()
    assert "0 spans sent, 2 still queued ..." in captured.err
    assert captured.out == "2 spans sent, 0 queued in 0 requests\n"


@pytest.mark.usefixtures("spool")
def test_spool_purge_deletes_only_with_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "2 spans in 2 files would be deleted" in run_spool(capsys, "purge")
    assert len(run_spool(capsys, "list").splitlines()) == 2
    assert "2 spans in 2 files deleted" in run_spool(capsys, "purge", "--yes")
    assert run_spool(capsys, "list") == ""
    assert "1 span in 1 file deleted" in run_spool(capsys, "purge", "--dead-letters", "--yes")
    assert run_spool(capsys, "list", "--dead-letters") == ""
    assert "0 spans in 0 files" in run_spool(capsys, "purge")


@pytest.mark.usefixtures("spool")
def test_spool_purge_and_list_select_by_destination(capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 spans in 0 files would" in run_spool(capsys, "purge", "--experiment", "2")
    assert "0 spans in 0 files would" in run_spool(capsys, "purge", "--experiment", "1", "--workspace", "team-a")
    assert run_spool(capsys, "list", "--workspace", "team-a") == ""
    assert len(run_spool(capsys, "list", "--experiment", "1").splitlines()) == 2
    assert "2 spans in 2 files deleted" in run_spool(capsys, "purge", "--experiment", "1", "--yes")


def test_spool_retry_sends_rejected_requests_again(spool: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    spool.answer(then=ACCEPTED)
    assert "1 span in 1 file would be sent again" in run_spool(capsys, "retry")
    assert "0 spans in 0 files queued again" in run_spool(capsys, "retry", "--experiment", "2", "--yes")
    assert "refused" not in spans_sent_to(spool)[3:]
    output = run_spool(capsys, "retry", "--experiment", "1", "--yes")
    assert output == "1 span in 1 file queued again\n3 spans sent, 0 queued in 0 requests\n"
    assert "refused" in spans_sent_to(spool)[3:]
    assert run_spool(capsys, "list", "--dead-letters") == ""


def spans_sent_to(server: ScriptedServer) -> list[str]:
    return [span.name for request in server.to("/v1/traces") for span in request.spans()]


@pytest.mark.usefixtures("spool")
def test_spool_status_and_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status = json.loads(run_spool(capsys, "status", "--json"))
    [target] = status["targets"]
    assert (target["current"], target["sender"]) == (True, "none")
    assert (target["queued"]["spans"], target["refused"]["spans"], target["damaged"]["spans"]) == (2, 1, 0)
    assert target["queued"]["oldest_seconds"] >= 0
    assert status["totals"]["queued"] == {"spans": 2, "requests": 2, "bytes": target["queued"]["bytes"]}
    requests = json.loads(run_spool(capsys, "list", "--json"))
    assert [(request["spans"], request["experiment"]) for request in requests] == [(1, "1"), (1, "1")]
    [rejected] = json.loads(run_spool(capsys, "list", "--dead-letters", "--json"))
    assert "too long a session" in rejected["message"]


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_spool_counts_lists_sends_and_deletes_feedback(
    spool: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_feedback() -> None:
        telemetry = configure(auto_instrument=False)
        telemetry.log_feedback(TRACE_ID, "helpful", True)
        shutdown(0.5)

    path = f"/api/3.0/mlflow/traces/tr-{TRACE_ID}/assessments"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    spool.answer(path=path, then=DOWN)
    leave_feedback()
    assert "  feedback     1 file\n" in run_spool(capsys, "status")
    assert f"feedback 'helpful' on tr-{TRACE_ID}" in run_spool(capsys, "list")
    assert "2 spans in 2 files and 1 feedback file would be deleted" in run_spool(capsys, "purge")
    assert "and 1 feedback file deleted" in run_spool(capsys, "purge", "--yes")
    assert "feedback" not in run_spool(capsys, "status")
    leave_feedback()
    assert "0 feedback files sent, 1 still on disk" in run_spool(capsys, "flush", "--timeout", "5", status=1)
    spool.answer(path=path, then=Answer(200, headers={"Content-Type": "application/json"}, body=b"{}"))
    spool.answer(then=ACCEPTED)
    assert "1 feedback file sent, 0 still on disk" in run_spool(capsys, "flush", "--timeout", "20")
    assert "feedback" not in run_spool(capsys, "status")


def test_spool_status_of_several_targets_has_totals(
    spool: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MLflowSpanExporter(tracking_uri="http://127.0.0.1:1", spool=True, timeout=1)
    exporter.export(make_spans("c"))
    exporter.shutdown()
    assert "total: 3 spans in 3 requests, " in run_spool(capsys, "status")


@pytest.mark.usefixtures("spool")
def test_spool_status_shows_a_folder_that_the_doctor_has_created(capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    (folder / "about.txt").unlink()
    assert f"{folder.name} (current settings)\n" in run_spool(capsys, "status")
    assert len(run_spool(capsys, "list").splitlines()) == 2


def test_spool_without_requests(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no requests are queued" in run_spool(capsys, "status")
    assert run_spool(capsys, "list") == ""


def test_page_url_without_metadata_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_url("troubleshooting").startswith("https://")

    def metadata(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", metadata)
    assert page_url("troubleshooting") == "docs/troubleshooting.md"
