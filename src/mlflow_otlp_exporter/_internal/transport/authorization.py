"""The `Authorization` header of a request, looked up anew for each one: tokens expire and are rotated.

The order is that of MLflow's own client (3.17): user and password, then a token. A token file, which MLflow does not
know but OpenShift AI's agents set, comes before a static token, which is most often a stale copy of it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.server_settings import ServerSettings
from mlflow_otlp_exporter._internal.config.source import SettingSource


class CredentialsUnavailable(Exception):
    """No credential can be had right now; the message says why and holds no secret."""


class Authorization(Protocol):
    """Where the `Authorization` header comes from."""

    def authorization(self) -> str | None:
        """The header's value for the next request, or None for no header.

        Raises:
            CredentialsUnavailable: There should be one, but it cannot be had now.
        """

    @property
    def watchable(self) -> bool:
        """Whether it costs nothing to look for a new one."""

    def __str__(self) -> str: ...


class _Fixed:
    """A value that never changes."""

    watchable = False

    def __init__(self, value: str | None, what: str) -> None:
        self._value, self._what = value, what

    def authorization(self) -> str | None:
        return self._value

    def __str__(self) -> str:
        return self._what


class _TokenFile:
    """A file with a token, read again whenever it changed.

    The kubelet rotates a projected token about once an hour by swapping a symbolic link, so the file behind the path
    is another one then: its inode is compared besides time and size.
    """

    watchable = True

    def __init__(self, path: str, source: SettingSource) -> None:
        self._path, self._source = path, source
        # Both in one tuple, so that threads need no lock: at worst two of them read the file.
        self._read: tuple[tuple[int, int, int], str] | None = None

    def authorization(self) -> str:
        try:
            found = Path(self._path).stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            read = self._read
            if read is None or read[0] != seen:
                read = self._read = (seen, _bearer(Path(self._path).read_text(encoding="ascii")))
            return read[1]
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError:
            reason = "it holds no token"
        raise CredentialsUnavailable(f"the token file {self._path} ({self._source}) cannot be used: {reason}")

    def __str__(self) -> str:
        return f"token file {self._path} ({self._source})"


class _Asked:
    """A function of the app, asked before every request."""

    watchable = False

    def __init__(self, ask: Callable[[], str | None]) -> None:
        self._ask = ask

    def authorization(self) -> str | None:
        try:
            found = self._ask()
            return None if found is None else _authorization(found)
        except Exception as error:  # noqa: BLE001 - the app's function may raise anything; its text may hold a secret
            kind = type(error).__name__
        raise CredentialsUnavailable(f"the function given as credentials= raised {kind}")

    def __str__(self) -> str:
        return "the function given as credentials="


def _checked(value: str) -> str:
    if not value or not value.isprintable() or not value.isascii():
        raise ValueError("not a token")
    return value


def _bearer(token: str) -> str:
    return f"Bearer {_checked(token.strip())}"


def _authorization(value: str) -> str:
    """A whole header value (`Bearer abc`, `Basic xyz`) as it is; a bare token with its scheme."""
    value = value.strip()
    return _checked(value) if " " in value else _bearer(value)


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _given(value: Any) -> Authorization:
    """What was given as `credentials=`."""
    source = SettingSource("argument", "credentials")
    if isinstance(value, str):
        try:
            return _Fixed(_authorization(value), str(source))
        except ValueError:
            raise ConfigurationError(
                f"{source} is not usable: expected a token of printable ASCII", MessageCode.INVALID_CREDENTIAL
            ) from None
    if isinstance(value, os.PathLike):
        return _TokenFile(str(Path(value).expanduser()), source)
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return _Fixed(_basic(*value), f"{source} (user {value[0]})")
    if callable(value):
        return _Asked(value)
    raise ConfigurationError(
        f"{source} is a {type(value).__name__}: expected a token, a pathlib.Path of a token file, "
        "a (user, password) pair, or a function that returns a token or an Authorization header's value",
        MessageCode.INVALID_CREDENTIAL,
    )


def make_authorization(server: ServerSettings) -> Authorization:
    """Chooses the credentials of a server.

    Raises:
        ConfigurationError: What was given as `credentials=` or as a token cannot be used.
    """
    sources = server.sources
    if server.credentials is not None:
        return _given(server.credentials)
    if "authorization" in server.headers:
        # The user's own header counts, and goes out with the other headers.
        return _Fixed(None, f"{sources['headers']} (authorization)")
    if server.username and server.password:
        return _Fixed(_basic(server.username, server.password), f"user {server.username} ({sources['username']})")
    if server.token_file:
        return _TokenFile(server.token_file, sources["token_file"])
    if server.token:
        try:
            return _Fixed(_bearer(server.token), f"token ({sources['token']})")
        except ValueError:
            raise ConfigurationError(
                f"{sources['token']} is not usable: expected a token of printable ASCII", MessageCode.INVALID_CREDENTIAL
            ) from None
    if server.credential_provider:
        provider = f"session of the credential provider {server.credential_provider}"
        return _Fixed(None, f"{provider} ({sources['credential_provider']})")
    if server.username or server.password:
        there, lacking = ("username", "password") if server.username else ("password", "username")
        return _Fixed(None, f"none ({sources[there]} without MLFLOW_TRACKING_{lacking.upper()})")
    return _Fixed(None, "none")


def credential_fingerprint(server: ServerSettings) -> str:
    """Whose credentials these are: who they are told apart by on disk, where no credential may lie.

    The path of a token file or a user's name, wherever it was given; for the rest the kind and its source.
    """
    given = server.credentials
    if isinstance(given, os.PathLike):
        return f"token file {Path(given).expanduser().absolute()}"
    if isinstance(given, tuple):
        return f"user {given[0]}"
    if given is not None and callable(given):
        return f"function {getattr(given, '__module__', '')}.{getattr(given, '__qualname__', type(given).__qualname__)}"
    if given is not None:
        return "token"
    if "authorization" in server.headers:
        return "header"
    if server.username and server.password:
        return f"user {server.username}"
    if server.token_file:
        return f"token file {Path(server.token_file).absolute()}"
    return "token" if server.token else "none"


def expiry_of(authorization: str | None) -> float | None:
    """When a bearer token expires, in seconds since 1970, if it is one that says so (RFC 7519).

    Args:
        authorization: An Authorization header's value.
    """
    scheme, _, token = (authorization or "").partition(" ")
    parts = token.split(".")
    if scheme.lower() != "bearer" or len(parts) != 3:  # header, payload, signature
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(payload["exp"])
    except (ValueError, KeyError, TypeError):
        return None
