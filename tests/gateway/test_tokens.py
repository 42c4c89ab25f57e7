"""Tokens of clients: what each may write to, and how the file is read."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.gateway import watched_files
from mlflow_otlp_exporter._internal.gateway.protocol import AnswerKind, Rejection
from mlflow_otlp_exporter._internal.gateway.tokens import TokenFile
from mlflow_otlp_exporter._internal.model.destination import Destination


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watched_files, "_CHECK_SECONDS", -1.0)
    return tmp_path / "tokens.json"


def write(path: Path, content: Mapping[str, Sequence[str]]) -> None:
    replacement = path.with_suffix(".new")
    replacement.write_text(json.dumps(content))
    replacement.replace(path)


@pytest.mark.parametrize(
    ("destination", "pattern", "is_allowed"),
    [
        (Destination("team-a", "agents"), "team-a/*", True),
        (Destination("team-ab", "agents"), "team-a/*", False),
        (Destination("team-a", "agents"), "team-a/agents", True),
        (Destination("team-a", "other"), "team-a/agents", False),
        (Destination("team-a", experiment_id="7"), "team-a/7", True),
        (Destination(None, "agents"), "/agents", True),
        (Destination("team-a", "agents"), "/agents", False),
        (Destination(), "/Default", True),
        (Destination(service_name="bot"), "/bot", True),
        (Destination("team-a", "a/b"), "*", True),
        (Destination("Team-A", "agents"), "team-a/*", False),
        (Destination("team-a", "agents", "7"), "team-a/agents", False),  # the id decides
        (Destination("team-a", "agents", "7"), "team-a/7", True),
    ],
)
def test_grant_matches_workspace_and_experiment(
    path: Path, destination: Destination, pattern: str, is_allowed: bool
) -> None:
    write(path, {"secret": ["x/y", pattern]})
    assert TokenFile(path).authenticate("Bearer secret")(destination) is is_allowed


@pytest.mark.parametrize(
    "authorization", ["", "secret", "Basic secret", "Bearer", "Bearer ", "Bearer secrets", "Bearer s\ud800"]
)
def test_authenticate_without_token_of_the_file_is_rejected(path: Path, authorization: str) -> None:
    write(path, {"secret": ["*"]})
    with pytest.raises(Rejection) as raised:
        TokenFile(path).authenticate(authorization)
    assert raised.value.answer.kind is AnswerKind.UNAUTHENTICATED
    assert "secret" not in raised.value.answer.message
    # Who sets a wrong token must not search for a missing header.
    is_bearer = authorization.startswith("Bearer ")
    assert (
        raised.value.answer.message == "the tokens file of the mlflow-otlp gateway does not have this token"
    ) is is_bearer
    assert ("expected the header" in raised.value.answer.message) is not is_bearer


def test_authenticate_after_rotation_knows_new_tokens_only(path: Path) -> None:
    write(path, {"old": ["*"], "both": ["*"]})
    tokens = TokenFile(path)
    tokens.authenticate("Bearer old")
    write(path, {"new": ["*"], "both": ["*"]})
    tokens.authenticate("bearer new")
    tokens.authenticate("Bearer both")
    with pytest.raises(Rejection):
        tokens.authenticate("Bearer old")


UNUSABLE = [
    ("{", "expected a JSON object of tokens"),
    ("[]", "expected a JSON object of tokens"),
    ('{"x": ["*"], "t": "*"}', 'entry 2: expected "<token>": ["<workspace>/<experiment>", ...]'),
    ('{"t": [1]}', "entry 1: expected"),
    ('{" ": ["*"]}', "entry 1: expected"),
    ('{"t": ["team-a"]}', "entry 1: a destination names no experiment: expected '<workspace>/*'"),
    (None, "No such file or directory"),
]


@pytest.mark.parametrize(("content", "message"), UNUSABLE)
def test_unusable_file_stops_the_start(path: Path, content: str | None, message: str) -> None:
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"tokens\.json is not usable") as raised:
        TokenFile(path)
    assert message in str(raised.value)


def test_each_breakage_and_each_repair_of_a_file_in_use_is_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those within a minute after the previous one; no token is in the log."""
    caplog.set_level("INFO")
    write(path, {"planted-token": ["*"]})
    tokens = TokenFile(path)
    for content, message in UNUSABLE * 2:
        caplog.clear()
        path.unlink()
        if content is not None:
            path.write_text(content)
        for _ in range(3):
            tokens.authenticate("Bearer planted-token")
        (record,) = caplog.records
        assert (record.levelname, record.getMessage().count(message)) == ("WARNING", 1)
        assert record.getMessage().endswith("The previous tokens stay valid. [MLO-107]")
        if content == "{":
            continue  # another breakage follows without a repair
        caplog.clear()
        write(path, {"planted-token": ["*"], content or "": ["*"]} if content else {"planted-token": ["*"]})
        for _ in range(3):
            tokens.authenticate("Bearer planted-token")
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == ("INFO", f"Tokens in {path} are read again [MLO-801]")
        assert "planted-token" not in record.getMessage()


def test_refresh_during_refresh_of_another_thread_reads_nothing(path: Path) -> None:
    path.touch()
    loads: list[str] = []
    is_loading, may_end = threading.Event(), threading.Event()

    def load() -> None:
        loads.append(threading.current_thread().name)
        if threading.current_thread().name == "slow":
            is_loading.set()
            assert may_end.wait(30.0)

    files = watched_files.WatchedFiles("tokens", [path], load)
    write(path, {"new": ["*"]})
    slow = threading.Thread(target=files.refresh, name="slow")
    slow.start()
    assert is_loading.wait(30.0)
    write(path, {"newer": ["*"], "still": ["*"]})
    files.refresh()
    assert loads[1:] == ["slow"]
    may_end.set()
    slow.join()
    files.refresh()
    assert len(loads) == 3


def test_file_that_every_user_may_write_is_unusable(path: Path) -> None:
    write(path, {"token": ["*"]})
    path.chmod(0o606)
    with pytest.raises(ConfigurationError, match="every user may write"):
        TokenFile(path)


def test_fifo_is_unusable(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="FIFO"):
        TokenFile(path)
