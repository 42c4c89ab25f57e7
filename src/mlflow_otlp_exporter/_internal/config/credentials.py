"""The `Authorization` header of a request, looked up for each request, because tokens expire and are rotated.

The order is that of MLflow's own client (3.17): user and password, then a token. A token file, which MLflow does not
know but OpenShift AI's agents set, precedes a static token, which is usually a stale copy of the file.
"""

import base64
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError, must_propagate
from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.config.models import ServerSettings, SettingSource
from mlflow_otlp_exporter._internal.config.service_account import MAX_TOKEN_BYTES


class CredentialsUnavailableError(Exception):
    """No credential is available now; the message holds no secret."""


class CredentialSource(Protocol):
    """Source of the `Authorization` header; `str()` describes it without secrets."""

    def header_value(self) -> str | None:
        """The header value, if any; raises CredentialsUnavailableError if it is not available now."""

    @property
    def can_watch(self) -> bool:
        """Whether looking for a new credential costs nothing."""

    def __str__(self) -> str: ...


class StaticAuth:
    """A header value that never changes."""

    can_watch = False

    def __init__(self, value: str | None, description: str) -> None:
        self._value, self._description = value, description

    def header_value(self) -> str | None:
        return self._value

    def __str__(self) -> str:
        return self._description


class TokenFileAuth:
    """A file with a token, which is read again when the file has changed.

    The kubelet rotates a projected token about once an hour by replacing a symbolic link, so the path leads to another
    file then. Therefore the inode is compared, too, not only time and size.
    """

    can_watch = True

    def __init__(self, path: str, source: SettingSource) -> None:
        self._path, self._source = path, source
        # File state and header in one tuple, so that threads need no lock: at worst two threads read the file.
        self._cache: tuple[tuple[int, int, int], str] | None = None

    def header_value(self) -> str:
        content = b"?"  # not read yet
        try:
            stat = Path(self._path).stat()
            state = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            cache = self._cache
            if cache is None or cache[0] != state:
                content = read_regular_file(Path(self._path), MAX_TOKEN_BYTES, follow_symlinks=True)
                cache = self._cache = (state, _bearer(content.decode("ascii")))
            return cache[1]
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError:
            reason = "it does not contain one token of printable ASCII" if content.strip() else "it is empty"
        raise CredentialsUnavailableError(f"the token file {self._path} ({self._source}) cannot be used: {reason}")

    def __str__(self) -> str:
        return f"token file {self._path} ({self._source})"


class CallableAuth:
    """A function of the application, which is called before every request."""

    can_watch = False

    def __init__(self, function: Callable[[], str | None]) -> None:
        self._function = function

    def header_value(self) -> str | None:
        try:
            value = self._function()
            return None if value is None else _to_header(value)
        except BaseException as error:  # the function may raise anything, and its text may hold a secret
            if must_propagate(error):
                raise
            kind = type(error).__name__
        raise CredentialsUnavailableError(f"the function given as credentials= raised {kind}")

    def __str__(self) -> str:
        return "the function given as credentials="


def _check_header_value(value: str) -> str:
    if not value or not value.isprintable() or not value.isascii():
        raise ValueError("not a token")
    return value


def _bearer(token: str) -> str:
    return f"Bearer {_check_header_value(token.strip())}"


def _to_header(value: str) -> str:
    """A whole header value (`Bearer abc`, `Basic xyz`) unchanged; a bare token with its scheme."""
    value = value.strip()
    return _check_header_value(value) if " " in value else _bearer(value)


def _basic(username: str, password: str, source: object) -> str:
    try:
        return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
    except UnicodeEncodeError:  # lone surrogates: bytes in the environment that are not UTF-8
        message = f"{source} is not usable: expected a user and a password of Unicode characters"
        raise ConfigurationError(message, MessageCode.INVALID_CREDENTIAL) from None


def _static_token(token: str, source: object, to_header: Callable[[str], str], description: str) -> StaticAuth:
    try:
        return StaticAuth(to_header(token), description)
    except ValueError:
        raise ConfigurationError(
            f"{source} is not usable: expected a token of printable ASCII", MessageCode.INVALID_CREDENTIAL
        ) from None


def _parse_credentials(value: Any) -> CredentialSource:
    """The value of the argument `credentials=`."""
    source = SettingSource("argument", "credentials")
    if isinstance(value, str):
        return _static_token(value, source, _to_header, str(source))
    if isinstance(value, os.PathLike):
        return TokenFileAuth(os.path.expanduser(value), source)  # noqa: PTH111 - never raises
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return StaticAuth(_basic(*value, source), f"{source} (user {value[0]})")
    if callable(value):
        return CallableAuth(value)
    raise ConfigurationError(
        f"{source} is a {type(value).__name__}: expected a token, a pathlib.Path of a token file, "
        "a (user, password) pair, or a function that returns a token or an Authorization header's value",
        MessageCode.INVALID_CREDENTIAL,
    )


def make_credential_source(server: ServerSettings) -> CredentialSource:
    """Choose the credentials of a server; raises ConfigurationError if they are unusable."""
    sources = server.sources
    if server.credentials is not None:
        return _parse_credentials(server.credentials)
    if "authorization" in server.headers:
        # The user's own header is sent with the other headers.
        return StaticAuth(None, f"{sources['headers']} (authorization)")
    if server.username and server.password:
        basic = _basic(server.username, server.password, sources["username"])
        return StaticAuth(basic, f"{server.user} ({sources['username']})")
    if server.token_file:
        return TokenFileAuth(server.token_file, sources["token_file"])
    if server.token:
        return _static_token(server.token, sources["token"], _bearer, f"token ({sources['token']})")
    if server.credential_provider:
        provider = f"session of the credential provider {server.credential_provider}"
        return StaticAuth(None, f"{provider} ({sources['credential_provider']})")
    if server.username or server.password:
        present, missing = ("username", "password") if server.username else ("password", "username")
        return StaticAuth(None, f"none ({sources[present]} without MLFLOW_TRACKING_{missing.upper()})")
    return StaticAuth(None, "none")


def has_credential(credentials: CredentialSource) -> bool:
    return not str(credentials).startswith("none")


def describe_token(credentials: CredentialSource) -> str:
    """How long a token is valid, if it says so itself, or that it has its scheme twice or is a path; for messages."""
    try:
        authorization = credentials.header_value()
    except CredentialsUnavailableError:
        return ""
    if (authorization or "").lower().startswith("bearer bearer "):
        return ", which begins with `Bearer `: set the token alone"
    path = (authorization or "").removeprefix("Bearer ")
    if path.startswith("/") and os.path.isfile(path):  # noqa: PTH113 - never raises, also for a long token
        return ", which is the path of a file: set it as `MLFLOW_TRACKING_TOKEN_FILE`"
    expiry = read_token_expiry(authorization)
    if expiry is None:
        return ""
    minutes = (expiry - time.time()) / 60
    duration = f"{abs(minutes):.0f} min" if abs(minutes) < 48 * 60 else f"{abs(minutes) / (24 * 60):.0f} days"
    return f", expired {duration} ago" if minutes < 0 else f", valid for {duration}"


def read_token_expiry(authorization: str | None) -> float | None:
    """When a bearer token expires, in seconds since 1970; None if the header value is no JWT with `exp` (RFC 7519)."""
    scheme, _, token = (authorization or "").partition(" ")
    parts = token.split(".")
    if scheme.lower() != "bearer" or len(parts) != 3 or len(token) > MAX_TOKEN_BYTES:  # header, payload, signature
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expiry = float(payload["exp"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return expiry if math.isfinite(expiry) else None
