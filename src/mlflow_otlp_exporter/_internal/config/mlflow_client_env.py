"""Settings of MLflow's own client: its credentials file, and its plugins, which need the MLflow SDK."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.config import parsers

CREDENTIALS_FILE = "~/.mlflow/credentials"
_MAX_CREDENTIALS_BYTES = 65_536


def read_credentials_file(home: str) -> dict[str, str]:
    """Read user and password of `~/.mlflow/credentials`; an empty `home` stands for this user's."""
    # In a container with an arbitrary user id and without HOME, there is no home, and Path.expanduser() raises.
    path = Path(home or os.path.expanduser("~"), ".mlflow", "credentials")  # noqa: PTH111
    if not path.is_absolute() or not path.is_file():
        return {}
    import configparser  # few users have the file, and the import takes as long as the one of this module

    parser = configparser.ConfigParser(interpolation=None)
    try:
        content = read_regular_file(path, _MAX_CREDENTIALS_BYTES, follow_symlinks=True)
        parser.read_string(content.decode("utf-8"))
        kind = None
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        kind = type(error).__name__
    if kind:
        # Not from the error: the parser's message quotes the line that it could not read.
        raise ConfigurationError(
            f"file {CREDENTIALS_FILE} cannot be read ({kind}): expected a section [mlflow] with "
            "mlflow_tracking_username and mlflow_tracking_password",
            MessageCode.CREDENTIALS_FILE,
        )
    names = ("username", "password")
    values = {name: parser.get("mlflow", f"mlflow_tracking_{name}", fallback=None) for name in names}
    return {name: value for name, value in values.items() if value}


def reject_auth_plugin(source: object, value: str) -> None:
    """Explain what to set instead of `MLFLOW_TRACKING_AUTH`, which names code of the MLflow SDK."""
    if value.startswith("kubernetes"):
        raise ConfigurationError(
            f"{source} is {value!r}, but this process has no pod's service account: expected "
            "MLFLOW_TRACKING_TOKEN (as from `oc whoami --show-token`), MLFLOW_TRACKING_TOKEN_FILE, or "
            "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR for one in another folder; and, for kubernetes-namespaced, "
            "MLFLOW_WORKSPACE=<the namespace>",
            MessageCode.SDK_PLUGIN,
        )
    # Anything else may be a token.
    shown = repr(value) if re.fullmatch(r"[\w.-]{1,30}", value) else "set"
    raise ConfigurationError(
        f"{source} is {shown}, a plugin of the MLflow SDK: expected MLFLOW_TRACKING_TOKEN, "
        "MLFLOW_TRACKING_TOKEN_FILE, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or credentials= "
        "with a function that returns the Authorization header's value",
        MessageCode.SDK_PLUGIN,
    )


def reject_sigv4(source: object, value: str) -> None:
    """Explain what to set instead of `MLFLOW_TRACKING_AWS_SIGV4`, which needs the MLflow SDK, if it is true."""
    try:
        is_enabled = parsers.parse_boolean(value)
    except ValueError:
        is_enabled = None
    if is_enabled is None:
        raise ConfigurationError(f"{source} is not usable: expected true or false")
    if is_enabled:
        raise ConfigurationError(
            f"{source} is {value!r}, which needs the MLflow SDK: expected session= with a "
            "requests.Session that signs (for example with requests-aws4auth), and this variable unset",
            MessageCode.SDK_PLUGIN,
        )
