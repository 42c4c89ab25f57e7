"""Sessions of upstream's credential providers: an entry point whose function returns a `requests.Session`."""

from importlib.metadata import entry_points

import requests

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.models import ServerSettings

_PROVIDER_GROUP = "opentelemetry_otlp_credential_provider"


def load_credential_provider_session(server: ServerSettings) -> requests.Session | None:
    """The session of the credential provider, if one is configured; raises ConfigurationError without a session."""
    name = server.credential_provider
    if name is None:
        return None
    matches = list(entry_points(group=_PROVIDER_GROUP, name=name))
    if not matches:
        names = ", ".join(sorted({point.name for point in entry_points(group=_PROVIDER_GROUP)})) or "none is installed"
        problem = f": expected an entry point of the group {_PROVIDER_GROUP} ({names})"
    else:
        try:
            session = matches[0].load()()
            result = f"returned a {type(session).__name__}"
        except Exception as error:  # noqa: BLE001 - the provider may raise anything
            # Only the type of the exception, and not as the cause: its text may hold a secret.
            session, result = None, f"raised {type(error).__name__}"
        if isinstance(session, requests.Session):
            return session
        problem = f", which {result}: expected a function that returns a requests.Session"
    setting = f"{server.sources['credential_provider']} is {name!r}"
    raise ConfigurationError(setting + problem, MessageCode.CREDENTIAL_PROVIDER)
