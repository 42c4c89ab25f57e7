"""Sessions of upstream's credential providers: an entry point whose function returns a `requests.Session`."""

from __future__ import annotations

from importlib.metadata import entry_points

import requests

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.server_settings import ServerSettings

_CODE = MessageCode.CREDENTIAL_PROVIDER
_GROUP = "opentelemetry_otlp_credential_provider"


def load_credential_provider_session(server: ServerSettings) -> requests.Session | None:
    """The session that the server's credential provider makes; None if there is no provider.

    Raises:
        ConfigurationError: There is no such provider, or it gives no session.
    """
    name = server.credential_provider
    if name is None:
        return None
    what = f"{server.sources['credential_provider']} is {name!r}"
    found = list(entry_points(group=_GROUP, name=name))
    if not found:
        installed = ", ".join(sorted({each.name for each in entry_points(group=_GROUP)})) or "none is installed"
        raise ConfigurationError(f"{what}: expected an entry point of the group {_GROUP} ({installed})", _CODE)
    try:
        session = found[0].load()()
        why = f"returned a {type(session).__name__}"
    except Exception as error:  # noqa: BLE001 - anything may be in there
        # Only its type, and not as the cause: its text may hold a secret.
        session, why = None, f"raised {type(error).__name__}"
    if isinstance(session, requests.Session):
        return session
    raise ConfigurationError(f"{what}, which {why}: expected a function that returns a requests.Session", _CODE)
