"""Bearer tokens of clients, from a file that is read again when it changes."""

import hashlib
import hmac
import stat
from fnmatch import fnmatchcase
from pathlib import Path

from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.gateway.intake import IsAllowed
from mlflow_otlp_exporter._internal.gateway.protocol import GATEWAY, AnswerKind, Rejection
from mlflow_otlp_exporter._internal.gateway.watched_files import WatchedFiles
from mlflow_otlp_exporter._internal.model.destination import Destination

_MAX_FILE_BYTES = 1 << 20
_SCHEME = "bearer "


class Grant:
    """The destinations that a token may write to, as shell patterns of `workspace/experiment`."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = patterns

    def is_allowed(self, destination: Destination) -> bool:
        return any(fnmatchcase(destination.label, pattern) for pattern in self._patterns)


class TokenFile:
    """A JSON file: `{"<token>": ["<workspace>/<experiment>", ...], ...}`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._grants: dict[bytes, Grant] = {}
        self._files = WatchedFiles("tokens", [path], self._load)

    def authenticate(self, authorization: str) -> IsAllowed:
        """Return what the token in a header's value may write to; raises Rejection for an unknown one."""
        self._files.refresh()
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            message = f"expected the header `authorization: Bearer <token>` with a token of the {GATEWAY}"
            raise Rejection(AnswerKind.UNAUTHENTICATED, message)
        grant, digest = None, _digest(authorization[len(_SCHEME) :].strip())
        for candidate, candidate_grant in self._grants.items():  # all of them, in constant time
            if hmac.compare_digest(candidate, digest):
                grant = candidate_grant
        if grant is None:
            raise Rejection(AnswerKind.UNAUTHENTICATED, f"the tokens file of the {GATEWAY} does not have this token")
        return grant.is_allowed

    def _load(self) -> None:
        if self._path.stat().st_mode & stat.S_IWOTH:
            raise ValueError("every user may write to it")
        content = parse_json(read_regular_file(self._path, _MAX_FILE_BYTES, follow_symlinks=True))
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object of tokens")  # noqa: TRY004 - as for all other content
        grants: dict[bytes, Grant] = {}
        for number, (token, patterns) in enumerate(content.items(), 1):  # a message must not contain the token
            is_list = isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
            if not token.strip() or not is_list:
                raise ValueError(f'entry {number}: expected "<token>": ["<workspace>/<experiment>", ...]')
            if not all("/" in pattern or pattern == "*" for pattern in patterns):
                # Without the pattern: if key and value were swapped, it is the token.
                raise ValueError(f"entry {number}: a destination names no experiment: expected '<workspace>/*'")
            grants[_digest(token.strip())] = Grant(tuple(patterns))
        self._grants = grants


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
