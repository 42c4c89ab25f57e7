"""The Authorization header: which credential is used, and when it is read."""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.config.credentials import (
    CredentialSource,
    CredentialsUnavailableError,
    describe_token,
    make_credential_source,
)
from mlflow_otlp_exporter._internal.config.resolver import resolve


def make(**arguments: Any) -> CredentialSource:
    return make_credential_source(resolve(arguments, environment={"HOME": "/nowhere"}).traces)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        ({}, None),
        ({"token": "t"}, "Bearer t"),
        ({"username": "ada", "password": "p", "token": "t"}, basic("ada:p")),
        ({"username": "ada", "token": "t"}, "Bearer t"),
        ({"credentials": "t"}, "Bearer t"),
        ({"credentials": "Basic eDp5"}, "Basic eDp5"),
        ({"credentials": ("ada", "pä")}, basic("ada:pä")),
        ({"credentials": lambda: "t", "token": "other"}, "Bearer t"),
        ({"credentials": lambda: "Bearer t"}, "Bearer t"),
        ({"credentials": lambda: None}, None),
        ({"headers": {"Authorization": "x"}, "token": "t"}, None),  # the user's own header is sent unchanged
    ],
)
def test_authorization_with_settings_returns_header(arguments: dict[str, Any], header: str | None) -> None:
    assert make(**arguments).header_value() == header


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "none"),
        ({"username": "ada"}, "none (argument username= without MLFLOW_TRACKING_PASSWORD)"),
        ({"password": "planted"}, "none (argument password= without MLFLOW_TRACKING_USERNAME)"),
    ],
)
def test_str_with_incomplete_settings_names_missing_variable(arguments: dict[str, Any], words: str) -> None:
    assert str(make(**arguments)) == words


def test_token_file_auth_after_change_reads_file_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    credentials = make(token_file=str(file), token="stale")
    with pytest.raises(CredentialsUnavailableError, match="No such file"):
        credentials.header_value()
    file.write_text("one\n")
    assert credentials.header_value() == "Bearer one"
    # As the kubelet does: another file under the same name, with the same size, and even the same time.
    other = tmp_path / "other"
    other.write_text("two\n")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert credentials.header_value() == "Bearer two"
    file.write_text("")
    with pytest.raises(CredentialsUnavailableError, match="it is empty"):
        credentials.header_value()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_token_file_auth_with_file_of_another_kind_is_unavailable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "large").write_text("x" * 100_000)
    expected = {"fifo": "a FIFO", "link": "a device", ".": "a directory", "large": "larger"}
    for name, reason in expected.items():
        with pytest.raises(CredentialsUnavailableError, match=reason):
            make(token_file=str(tmp_path / name)).header_value()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n", "it is empty"),
        (b"planted\nsecond line", "it does not contain one token of printable ASCII"),
        (b"\xef\xbb\xbfplanted", "it does not contain one token of printable ASCII"),
        ("planted".encode("utf-16"), "it does not contain one token of printable ASCII"),
    ],
)
def test_token_file_auth_with_unusable_content_says_why_without_quoting_it(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(CredentialsUnavailableError, match=reason) as raised:
        make(token_file=str(tmp_path / "token")).header_value()
    assert "planted" not in str(raised.value)


def test_token_file_auth_with_impossible_path_is_unavailable() -> None:
    with pytest.raises(CredentialsUnavailableError, match="cannot be used"):
        make(credentials=Path("a\0b")).header_value()


def test_make_authorization_with_user_that_is_not_unicode_raises() -> None:
    with pytest.raises(ConfigurationError, match="a user and a password of Unicode characters") as raised:
        make(credentials=("ada", "planted\udcff"))
    assert "planted" not in str(raised.value)


def test_make_authorization_with_path_reads_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one")
    assert make(credentials=tmp_path / "token").header_value() == "Bearer one"


@pytest.mark.parametrize("error", [RuntimeError, BaseException, GeneratorExit])
def test_callable_auth_with_exception_hides_its_text(error: type[BaseException]) -> None:
    def fail() -> str:
        raise error("planted-secret")

    with pytest.raises(CredentialsUnavailableError, match=error.__name__) as raised:
        make(credentials=fail).header_value()
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize("value", [5, ("a",), ("a", 1), b"t", "planted\nsecret", "plänted"])
def test_make_authorization_with_unusable_credentials_raises_without_value(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="argument credentials=") as raised:
        make(credentials=value)
    assert "planted" not in str(raised.value)


def test_str_with_any_credential_contains_no_secret(tmp_path: Path) -> None:
    for arguments in (
        {"credentials": "planted"},
        {"credentials": ("ada", "planted")},
        {"token": "planted"},
        {"username": "ada", "password": "planted"},
        {"token_file": str(tmp_path / "file")},
    ):
        authorization = make(**arguments)
        assert "planted" not in str(authorization) + repr(authorization)
        assert str(authorization)


def test_token_with_its_scheme_is_described_without_its_value(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("bearer s3cret\n")
    for source in (make(token="Bearer s3cret"), make(token_file=str(file))):
        assert describe_token(source) == ", which begins with `Bearer `: set the token alone"
        assert "s3cret" not in f"{source}{describe_token(source)}"
    assert [describe_token(make(token=token)) for token in ("s3cret", "bearers3cret")] == ["", ""]
    assert describe_token(make(credentials="Bearer s3cret")) == ""


def test_token_that_is_the_path_of_a_file_is_described(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    assert "set it as `MLFLOW_TRACKING_TOKEN_FILE`" in describe_token(make(token=str(file)))
    assert [describe_token(make(token=token)) for token in (f"{file}x", "/" + "a" * 5000)] == ["", ""]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3600, ", expired 60 min ago"), (-69 * 86_400, ", expired 69 days ago"), (7200, ", valid for 120 min")],
)
def test_describe_token_with_expiry_says_when(seconds: int, text: str) -> None:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + seconds}).encode()).decode().rstrip("=")
    assert describe_token(make(token=f"e30.{payload}.c2ln")) == text
