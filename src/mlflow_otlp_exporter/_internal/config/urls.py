"""Parsers of URLs: with and without `/v1/traces`, copied from MLflow's console or from Databricks' documentation.

Any other URL raises `InvalidAddressError`, whose message says what to write instead.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit, urlunsplit

from mlflow_otlp_exporter._internal.common.codes import MessageCode

TRACES_PATH = "/v1/traces"
_DATABASES = frozenset({"sqlite", "postgresql", "postgres", "mysql", "mssql"})
_DATABRICKS = frozenset({"databricks", "databricks-uc", "uc"})
_DATABRICKS_HOSTS = (".databricks.com", ".databricks.us", ".azuredatabricks.net")
_FORBIDDEN = frozenset(" \\")
# With port. ASCII only: the HTTP client would replace other letters and dots by similar ones.
_HOST = r"(?a)(?:[\w-]{1,63}(?:\.[\w-]{1,63})*\.?|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\])(?::\d*)?"
# Host with port, or a name that is no path, and what may stand around them.
_WITHOUT_SCHEME = (
    r"(?i)(?:[^/@]{1,300}@[\w.-]+|localhost|[\w-]+(?:\.[\w-]+)+|[\w.-]+(?=:\d)|\[[\da-f:.]+\])(?::\d{1,5})?(?:[/?#].*)?"
)
_SCHEME = r"[A-Za-z][\w+.-]{0,30}://"
# What else than an address, a path or a name users put into a variable by mistake.
_CREDENTIAL_LIKE = (
    r"(?i)-----BEGIN|eyJ[\w-]{10}|sha256~|\b(?:bearer|basic) |\b(?:sk|gh[pousr]|glpat|xox[a-z])[_-]\w{8}"
    r"|\bdapi[\da-f]{16}|(?:token|key|secret|password)[ \"']{0,2}[=:]"
)
_REST_PATH = r"/(?:ajax-)?api/\d\.\d(?:/|$)"
# The console of 3.10 and newer names the workspace in the query, if at all.
_CONSOLE = r"/(?:workspaces/(?P<workspace>[^/?]+)/)?experiments/(?P<experiment>\d+)(?=[/?]|$)"


class InvalidAddressError(ValueError):
    """A URL is invalid; the message says what was expected."""

    def __init__(self, message: str, code: MessageCode = MessageCode.INVALID_SETTING) -> None:
        super().__init__(message)
        self.code = code


def _parse_http_url(value: Any) -> str:
    url = str(value).strip()
    parts = _split_url(url)
    if parts.scheme.lower() not in ("http", "https"):
        is_host = re.fullmatch(_WITHOUT_SCHEME, url) is not None
        hint = f", for example http://{hide_secrets(url)}" if is_host else ""
        code = MessageCode.SCHEME_MISSING if is_host else MessageCode.INVALID_SETTING
        raise InvalidAddressError(f"expected an address that begins with http:// or https://{hint}", code)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not parts.hostname or port == -1:
        raise InvalidAddressError("expected http://host:port or https://host:port")
    userinfo, at, host = parts.netloc.partition("@")
    if not re.fullmatch(_HOST, host if at else userinfo):
        raise InvalidAddressError(
            "expected a host name of ASCII letters, digits, '-' and '.' (an international name in its form with xn--), "
            "with %40 for '@' in user names"
        )
    return urlunsplit((parts.scheme.lower(), parts.netloc, parts.path.rstrip("/"), parts.query, ""))


def hide_secrets(text: str) -> str:
    """Hide user and password, query and fragment of a URL, also of a malformed one, and a text that looks secret."""
    scheme = match.group() if (match := re.match(_SCHEME, text)) else ""
    head, at, tail = text[len(scheme) :].rpartition("@")
    if re.search(_CREDENTIAL_LIKE, text) or "?" in head or "#" in head:
        return f"{scheme}***"
    return f"{scheme}{'***@' if at else ''}{re.split('[?]|#(?!/)', tail)[0]}"


def _split_url(url: str) -> SplitResult:
    # The HTTP client takes a backslash for the end of the host, and `urlsplit` removes line feeds and tabs: they would
    # see different hosts, and a token for one would go to the other.
    try:
        if url.isprintable() and not set(url) & _FORBIDDEN:
            return urlsplit(url)
    except ValueError:  # whose text quotes the URL, which may hold a password
        pass
    raise InvalidAddressError("expected an address without spaces, backslashes and control characters")


def _databricks_error() -> InvalidAddressError:
    return InvalidAddressError(
        "expected the http(s) address of an MLflow server: Databricks takes OpenTelemetry at an endpoint of its "
        "own. Set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_TRACES_HEADERS as it documents them",
        MessageCode.DATABRICKS,
    )


def _reject_rest_path(url: str, expected: str) -> None:
    """Reject the URL of a REST call, which users copy from a command with curl."""
    parts = urlsplit(url)
    match = re.search(_REST_PATH, parts.path) if parts.path else None
    if match and not parts.path.endswith(TRACES_PATH):  # Databricks has its OTLP below /api/2.0/otel
        server = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path[: match.start()], "", ""))
        raise InvalidAddressError(f"expected {expected}, not that of a REST call: {server}", MessageCode.REST_PATH)


def parse_tracking_uri(value: Any) -> str:
    """Parse the URL of an MLflow server; explain what to do instead of MLflow's other kinds of tracking URI."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value).strip()
    scheme = text.partition(":")[0].lower().partition("+")[0]
    if scheme in _DATABASES:
        raise InvalidAddressError(
            "expected the http(s) address of an MLflow server: spans cannot be sent into a database. "
            "Start one in front of it, `mlflow server --backend-store-uri <that database>`, and give its address, "
            "http://localhost:5000 by default",
            MessageCode.NOT_A_SERVER,
        )
    if scheme in _DATABRICKS:
        raise _databricks_error()
    if scheme == "file" or _is_path(text):
        raise InvalidAddressError(
            "expected the http(s) address of an MLflow server: MLflow's file store takes no OpenTelemetry spans. "
            "Start a server with a database, `mlflow server --backend-store-uri sqlite:///mlflow.db`, "
            "and give its address, http://localhost:5000 by default",
            MessageCode.NOT_A_SERVER,
        )
    url = _parse_http_url(text)
    parts = urlsplit(url)
    if (parts.hostname or "").endswith(_DATABRICKS_HOSTS):
        raise _databricks_error()
    _reject_rest_path(url, "the address of the MLflow server")
    if parts.query:
        raise InvalidAddressError("expected an address without '?'")
    return _without_traces_path(url)


def _is_path(text: str) -> bool:
    if "://" in text or text.lower().startswith(("http:", "https:")):
        return False
    if text[:1] in "./~" or re.match(r"[A-Za-z]:[\\/]", text) or os.path.exists(text):  # noqa: PTH110 - of any text
        return True
    return re.fullmatch(_WITHOUT_SCHEME, text) is None and (os.sep in text or ":" not in text)


def parse_console_url(value: Any) -> dict[str, str]:
    """Read experiment and workspace from a URL such as `http://host:5000/#/experiments/1/traces`."""
    path, _, query = urlsplit(str(value).strip()).fragment.partition("?")
    match = re.match(_CONSOLE, path) if path else None
    if match is None:
        return {}
    workspace = match["workspace"] or parse_qs(query).get("workspace", [""])[0]
    return {"experiment_id": match["experiment"]} | ({"workspace": unquote(workspace)} if workspace else {})


def parse_endpoint(value: Any) -> str:
    url = _parse_http_url(value)
    if urlsplit(str(value).strip()).fragment:
        page = urlsplit(url)
        server = urlunsplit((page.scheme, page.netloc.rpartition("@")[2], page.path, "", ""))
        raise InvalidAddressError(
            f"expected an OTLP endpoint, not a page's address: {server}{TRACES_PATH}, or the page's address as "
            "tracking_uri= or MLFLOW_TRACKING_URI",
            MessageCode.REST_PATH,
        )
    _reject_rest_path(url, "an OTLP endpoint, such as that of an MLflow server with /v1/traces behind it")
    base_url = _without_traces_path(url)
    return base_url if base_url == url else base_url + TRACES_PATH


def parse_base_endpoint(value: Any) -> str:
    """Append `/v1/traces` to the base URL of an OTLP endpoint, unless it is there already."""
    return _without_traces_path(parse_endpoint(value)) + TRACES_PATH


def _without_traces_path(url: str) -> str:
    # More than once if a variable with the whole path was taken for one without.
    while url.endswith(TRACES_PATH):
        url = url.removesuffix(TRACES_PATH).rstrip("/")
    return url


def split_userinfo(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without user and password, and these by setting name."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    name, _, password = userinfo.partition(":")
    return urlunsplit(parts._replace(netloc=host)), {"username": unquote(name), "password": unquote(password)}


def path_prefix(url: str) -> str:
    """Return the path below which a server is: `--static-prefix`, or a proxy's prefix."""
    return urlsplit(url).path


def without_path(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "", "", ""))
