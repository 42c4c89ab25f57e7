"""Addresses as people have them: with and without `/v1/traces`, copied from the console, from Databricks' documents.

What can be understood is; what cannot, is refused with a `InvalidAddressError` that says what to write instead.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from mlflow_otlp_exporter._internal.common.codes import MessageCode

TRACES_PATH = "/v1/traces"
_DATABASES = frozenset({"sqlite", "postgresql", "postgres", "mysql", "mssql"})
_DATABRICKS = frozenset({"databricks", "databricks-uc", "uc"})
_DATABRICKS_HOSTS = (".databricks.com", ".databricks.us", ".azuredatabricks.net")
_REST_PATH = re.compile(r"/(?:ajax-)?api/\d\.\d(?:/|$)")
# The console of 3.10 and newer names the workspace in the query, if at all.
_CONSOLE = re.compile(r"/(?:workspaces/(?P<workspace>[^/?]+)/)?experiments/(?P<experiment>\d+)(?=[/?]|$)")


class InvalidAddressError(ValueError):
    """An address is wrong.

    Args:
        message: What was expected.
        code: Under which it is explained.
    """

    def __init__(self, message: str, code: MessageCode = MessageCode.INVALID_SETTING) -> None:
        super().__init__(message)
        self.code = code


def _http_url(value: Any) -> str:
    found = str(value).strip()
    parts = urlsplit(found)
    if parts.scheme.lower() not in ("http", "https"):
        hint = f", for example http://{found}" if "://" not in found and "." not in parts.scheme else ""
        raise InvalidAddressError(f"expected an address that begins with http:// or https://{hint}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not parts.hostname or port == -1:
        raise InvalidAddressError("expected http://host:port or https://host:port")
    return urlunsplit((parts.scheme.lower(), parts.netloc, parts.path.rstrip("/"), parts.query, ""))


def _databricks() -> InvalidAddressError:
    return InvalidAddressError(
        "expected the http(s) address of an MLflow server: Databricks takes OpenTelemetry at an endpoint of its "
        "own. Set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_TRACES_HEADERS as it documents them",
        MessageCode.DATABRICKS,
    )


def _refuse_rest_path(url: str, expected: str) -> None:
    """A REST call's address, as somebody tried it with curl, is no server's."""
    parts = urlsplit(url)
    found = _REST_PATH.search(parts.path)
    if found and not parts.path.endswith(TRACES_PATH):  # Databricks has its OTLP below /api/2.0/otel
        server = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path[: found.start()], "", ""))
        raise InvalidAddressError(f"expected {expected}, not that of a REST call: {server}", MessageCode.REST_PATH)


def tracking_uri(value: Any) -> str:
    """Reads the address of an MLflow server; explains what to do for MLflow's other kinds of tracking URI."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else str(value).strip()
    scheme = found.partition(":")[0].lower().partition("+")[0]
    if scheme in _DATABASES:
        raise InvalidAddressError(
            "expected the http(s) address of an MLflow server: spans cannot be sent into a database. "
            "Start one in front of it, `mlflow server --backend-store-uri <that database>`, and give its address, "
            "http://localhost:5000 by default",
            MessageCode.NOT_A_SERVER,
        )
    if scheme in _DATABRICKS:
        raise _databricks()
    if scheme == "file" or ("://" not in found and (found[:1] in "./~" or os.sep in found or ":" not in found)):
        raise InvalidAddressError(
            "expected the http(s) address of an MLflow server: MLflow's file store takes no OpenTelemetry spans. "
            "Start a server with a database, `mlflow server --backend-store-uri sqlite:///mlflow.db`, "
            "and give its address, http://localhost:5000 by default",
            MessageCode.NOT_A_SERVER,
        )
    url = _http_url(found)
    parts = urlsplit(url)
    if (parts.hostname or "").endswith(_DATABRICKS_HOSTS):
        raise _databricks()
    _refuse_rest_path(url, "the address of the MLflow server")
    if parts.query:
        raise InvalidAddressError("expected an address without '?'")
    return url.removesuffix(TRACES_PATH)


def parse_console_url(value: Any) -> dict[str, str]:
    """What the address of a console's page says of experiment and workspace, as settings.

    Args:
        value: Such as `http://host:5000/#/experiments/1/traces`.
    """
    path, _, query = urlsplit(str(value).strip()).fragment.partition("?")
    found = _CONSOLE.match(path)
    if found is None:
        return {}
    workspace = found["workspace"] or parse_qs(query).get("workspace", [""])[0]
    return {"experiment_id": found["experiment"]} | ({"workspace": unquote(workspace)} if workspace else {})


def endpoint(value: Any) -> str:
    """Reads the full address of an OTLP/HTTP traces endpoint."""
    url = _http_url(value)
    if urlsplit(str(value).strip()).fragment:
        page = urlsplit(url)
        server = urlunsplit((page.scheme, page.netloc.rpartition("@")[2], page.path, "", ""))
        raise InvalidAddressError(
            f"expected an OTLP endpoint, not a page's address: {server}{TRACES_PATH}, or the page's address as "
            "tracking_uri= or MLFLOW_TRACKING_URI",
            MessageCode.REST_PATH,
        )
    _refuse_rest_path(url, "an OTLP endpoint, such as that of an MLflow server with /v1/traces behind it")
    return url


def base_endpoint(value: Any) -> str:
    """Reads the base address of an OTLP endpoint, behind which `/v1/traces` is put; not twice."""
    return endpoint(value).removesuffix(TRACES_PATH) + TRACES_PATH


def split_userinfo(url: str) -> tuple[str, dict[str, str]]:
    """An address without user and password, and those by name."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    name, _, password = userinfo.partition(":")
    return urlunsplit(parts._replace(netloc=host)), {"username": unquote(name), "password": unquote(password)}


def path_prefix(url: str) -> str:
    """The path of a server's address: `--static-prefix`, or what a proxy has put the server under; often empty."""
    return urlsplit(url).path


def without_path(url: str) -> str:
    """A server's address without its path."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "", "", ""))
