"""Settings and unknown environment variables as text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow_otlp_exporter._internal.config.models import GatewaySettings, ServerSettings, Settings
from mlflow_otlp_exporter._internal.config.schema import OWN_VARIABLE, SETTINGS, format_value


def describe_settings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and source of every setting; a secret's value is replaced by `***`."""
    yield "target", settings.traces.address, str(settings.sources["url"])
    guess = "" if settings.is_api_certain else " (a guess)"
    api = "none" if settings.api is None else settings.api.address + guess
    yield "mlflow", api, str(settings.api.sources["url"]) if settings.api else "default"
    # `traces` comes first, and has the same type as `api`.
    sections = (settings, *settings)
    for setting in SETTINGS:
        if setting.model in (None, GatewaySettings):
            continue
        if setting.name == "workspace" and settings.namespace:
            # The server is asked whether it has this workspace when the first spans are sent.
            yield "workspace", f"{settings.namespace} (if there is one)", str(settings.sources["namespace"])
            continue
        value = getattr(next(section for section in sections if type(section) is setting.model), setting.name)
        if setting.name == "headers":
            # Without names: a key that was written without a name reads as one.
            value = f"{len(value)}, hidden" if value else None
        elif value and (setting.is_secret or (setting.name == "username" and settings.traces.user != f"user {value}")):
            value = "***"
        yield setting.name, "-" if value in (None, ()) else format_value(value), str(settings.sources[setting.name])


def describe_target(settings: Settings) -> str:
    """Describe server, workspace and experiment, as far as they are set, for people."""
    server = settings.api if settings.is_api_certain and settings.api is not None else settings.traces
    names = {"workspace": settings.workspace, "experiment": settings.experiment or settings.experiment_id}
    return ", ".join([server.address, *(f"{name} {value!r}" for name, value in names.items() if value)])


def summarize_settings(settings: Settings) -> str:
    """Describe the target and all settings that differ from their default, in one line."""
    target, _, *rows = describe_settings(settings)
    parts = [f"{target[1]} ({target[2]})"]
    parts += [f"{name} {value} ({source})" for name, value, source in rows if source != "default"]
    return ", ".join(parts)


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield `MLFLOW_OTLP_*` variables that are no settings, each with the most similar variable."""
    suffixes = {
        name.removeprefix(OWN_VARIABLE)
        for setting in SETTINGS
        for name in setting.variables
        if name.startswith(OWN_VARIABLE)
    }
    for name in sorted(environment):
        suffix = name.removeprefix(OWN_VARIABLE)
        if name.startswith(OWN_VARIABLE) and suffix not in suffixes and environment[name].strip():
            import difflib  # only for a mistyped name

            matches = difflib.get_close_matches(suffix, sorted(suffixes), 1)
            yield name, OWN_VARIABLE + matches[0] if matches else None


def describe_unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    for name, suggestion in unknown_variables(environment):
        message = f"Unknown environment variable {name} is ignored."
        yield f"{message} Did you mean {suggestion}?" if suggestion else message


def credential_fingerprint(server: ServerSettings) -> str:
    """Identify the credentials of a server on disk, where no credential may be stored.

    The path of a token file or a user's name, whatever setting it comes from; otherwise the kind of credential.
    """
    credentials = server.credentials
    if isinstance(credentials, os.PathLike):
        return f"token file {Path(os.path.expanduser(credentials)).absolute()}"  # noqa: PTH111 - never raises
    if isinstance(credentials, tuple):
        return f"user {credentials[0]}"
    if credentials is not None and callable(credentials):
        name = getattr(credentials, "__qualname__", type(credentials).__qualname__)
        return f"function {getattr(credentials, '__module__', '')}.{name}"
    if credentials is not None:
        return "token"
    if "authorization" in server.headers:
        return "header"
    if server.username and server.password:
        return f"user {server.username}"
    if server.token_file:
        return f"token file {Path(server.token_file).absolute()}"
    return "token" if server.token else "none"
