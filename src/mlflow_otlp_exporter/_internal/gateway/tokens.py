"""Bearer tokens of clients, from a file that is read again when it changes."""

import hashlib
import hmac
import logging
import stat
import time
from fnmatch import fnmatchcase
from pathlib import Path

from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.gateway.intake import IsAllowed, describe_destination
from mlflow_otlp_exporter._internal.gateway.protocol import AnswerKind, Rejection
from mlflow_otlp_exporter._internal.model.destination import Destination

_MAX_FILE_BYTES = 1 << 20
_CHECK_SECONDS = 1.0
_SCHEME = "bearer "


class Grant:
    """The destinations that a token may write to, as shell patterns of `workspace/experiment`."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = patterns

    def is_allowed(self, destination: Destination) -> bool:
        name = describe_destination(destination)
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)


class TokenFile:
    """A JSON file: `{"<token>": ["<workspace>/<experiment>", ...], ...}`.

    Raises ConfigurationError if it is unusable at the start. Later, the last usable content stays valid, with a log
    line: a file that is being rewritten must not lock all clients out.
    """

    def __init__(self, path: Path, problem_log: ProblemLog) -> None:
        self._path, self._problem_log = path, problem_log
        self._state: tuple[int, int, int] | None = None
        self._checked_at = time.monotonic()
        self._grants: dict[bytes, Grant] = {}
        try:
            self._read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(f"{path} is not usable: {reason}", MessageCode.INVALID_CREDENTIAL) from None

    def authenticate(self, authorization: str) -> IsAllowed:
        """Return what the token in a header's value may write to; raises Rejection for an unknown one."""
        self._refresh()
        grant = None
        if authorization[: len(_SCHEME)].lower() == _SCHEME:
            digest = _digest(authorization[len(_SCHEME) :].strip())
            for candidate, candidate_grant in self._grants.items():  # all of them, in constant time
                if hmac.compare_digest(candidate, digest):
                    grant = candidate_grant
        if grant is None:
            raise Rejection(AnswerKind.UNAUTHENTICATED, "expected the header `authorization: Bearer <token>`")
        return grant.is_allowed

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            self._read()
            self._problem_log.resolve(str(self._path), add_code(MessageCode.RECOVERED, "Tokens are read again"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            message = f"The tokens in {self._path} cannot be read: {reason}. The previous tokens stay valid."
            self._problem_log.report(
                str(self._path), add_code(MessageCode.INVALID_CREDENTIAL, message), 0, logging.WARNING
            )

    def _read(self) -> None:
        # A mounted secret is a symbolic link, which is replaced; see TokenFileAuth.
        status = self._path.stat()
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        if state == self._state:
            return
        if status.st_mode & stat.S_IWOTH:
            raise ValueError("every user may write to it")
        content = parse_json(read_regular_file(self._path, _MAX_FILE_BYTES, follow_symlinks=True))
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object of tokens")  # noqa: TRY004 - as for all other content
        grants: dict[bytes, Grant] = {}
        for token, patterns in content.items():
            is_list = isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
            if not token.strip() or not is_list:
                raise ValueError("expected a list of `workspace/experiment` for each token")
            grants[_digest(token.strip())] = Grant(tuple(patterns))
        self._state, self._grants = state, grants


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
