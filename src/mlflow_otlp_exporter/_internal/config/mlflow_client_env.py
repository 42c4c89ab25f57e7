"""Settings of MLflow's own SDK that are read here, or cannot be: its credentials file, its plugins."""

from __future__ import annotations

from pathlib import Path

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config import parsers

CREDENTIALS_FILE = "~/.mlflow/credentials"


def credentials_in_file(home: str) -> dict[str, str]:
    """User and password of `~/.mlflow/credentials`, as far as they are in there.

    Args:
        home: The home folder; empty for this user's.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    path = Path(home or str(Path("~").expanduser()), ".mlflow", "credentials")
    if not path.is_file():
        return {}
    import configparser  # few users have the file, and the import takes as long as the one of this module

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
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
    found = {name: parser.get("mlflow", f"mlflow_tracking_{name}", fallback=None) for name in names}
    return {name: value for name, value in found.items() if value}


def refuse_auth_plugin(source: object, value: str) -> None:
    """`MLFLOW_TRACKING_AUTH` names code of the MLflow SDK, which is not in the app.

    Args:
        source: Where it was set.
        value: The plugin's name.

    Raises:
        ConfigurationError: Always.
    """
    if value.startswith("kubernetes"):
        raise ConfigurationError(
            f"{source} is {value!r}, which means a pod's service account, and there is none here: expected "
            "MLFLOW_TRACKING_TOKEN (as from `oc whoami --show-token`), MLFLOW_TRACKING_TOKEN_FILE, or "
            "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR for one in another folder than the usual one; and, for "
            "kubernetes-namespaced, MLFLOW_WORKSPACE=<the namespace>",
            MessageCode.SDK_PLUGIN,
        )
    raise ConfigurationError(
        f"{source} is {value!r}, a plugin of the MLflow SDK: expected MLFLOW_TRACKING_TOKEN, "
        "MLFLOW_TRACKING_TOKEN_FILE, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or credentials= "
        "with a function that returns the Authorization header's value",
        MessageCode.SDK_PLUGIN,
    )


def refuse_sigv4(source: object, value: str) -> None:
    """`MLFLOW_TRACKING_AWS_SIGV4` needs the MLflow SDK, if it is true.

    Args:
        source: Where it was set.
        value: What it was set to.

    Raises:
        ConfigurationError: It is true, or nothing that can be read.
    """
    try:
        wanted, why = parsers.boolean(value), ""
    except ValueError as error:
        wanted, why = True, str(error)
    if why:
        raise ConfigurationError(f"{source} is {value!r}: {why}")
    if wanted:
        raise ConfigurationError(
            f"{source} is {value!r}, which needs the MLflow SDK: expected session= with a "
            "requests.Session that signs (for example with requests-aws4auth), and this variable unset",
            MessageCode.SDK_PLUGIN,
        )
