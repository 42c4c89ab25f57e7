"""Tokens of clients: what each may write to, and how the file is read."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.gateway import tokens as tokens_module
from mlflow_otlp_exporter._internal.gateway.protocol import AnswerKind, Rejection
from mlflow_otlp_exporter._internal.gateway.tokens import TokenFile
from mlflow_otlp_exporter._internal.model.destination import Destination


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokens_module, "_CHECK_SECONDS", -1.0)
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
    ],
)
def test_grant_matches_workspace_and_experiment(
    path: Path, destination: Destination, pattern: str, is_allowed: bool
) -> None:
    write(path, {"secret": ["x/y", pattern]})
    assert TokenFile(path, ProblemLog()).authenticate("Bearer secret")(destination) is is_allowed


@pytest.mark.parametrize(
    "authorization", ["", "secret", "Basic secret", "Bearer", "Bearer ", "Bearer secrets", "Bearer s\ud800"]
)
def test_authenticate_without_token_of_the_file_is_rejected(path: Path, authorization: str) -> None:
    write(path, {"secret": ["*"]})
    with pytest.raises(Rejection) as raised:
        TokenFile(path, ProblemLog()).authenticate(authorization)
    assert raised.value.answer.kind is AnswerKind.UNAUTHENTICATED
    assert "secret" not in raised.value.answer.message


def test_authenticate_after_rotation_knows_new_tokens_only(path: Path) -> None:
    write(path, {"old": ["*"], "both": ["*"]})
    tokens = TokenFile(path, ProblemLog())
    tokens.authenticate("Bearer old")
    write(path, {"new": ["*"], "both": ["*"]})
    tokens.authenticate("bearer new")
    tokens.authenticate("Bearer both")
    with pytest.raises(Rejection):
        tokens.authenticate("Bearer old")


@pytest.mark.parametrize("content", ["{", "[]", '{"t": "*"}', '{"t": [1]}', '{" ": ["*"]}', None])
def test_unusable_file_stops_the_start_but_not_a_running_gateway(
    path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, {"token": ["*"]})
    tokens = TokenFile(path, ProblemLog())
    path.unlink()
    if content is not None:
        path.write_text(content)
    tokens.authenticate("Bearer token")
    tokens.authenticate("Bearer token")
    assert len([record for record in caplog.records if "previous tokens stay valid" in record.getMessage()]) == 1
    with pytest.raises(ConfigurationError, match=r"tokens\.json is not usable"):
        TokenFile(path, ProblemLog())


def test_file_that_every_user_may_write_is_unusable(path: Path) -> None:
    write(path, {"token": ["*"]})
    path.chmod(0o606)
    with pytest.raises(ConfigurationError, match="every user may write"):
        TokenFile(path, ProblemLog())


def test_fifo_is_unusable(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="FIFO"):
        TokenFile(path, ProblemLog())
