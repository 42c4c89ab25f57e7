"""The settings in force, for people."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from mlflow_otlp_exporter._internal.config.setting import written


def describe_settings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Name, value and source of every setting, for people: a secret's value is replaced by `***`."""
    yield "target", settings.traces.address, str(settings.sources["url"])
    api = "none" if settings.api is None else settings.api.address + ("" if settings.api_certain else " (a guess)")
    yield "mlflow", api, str(settings.api.sources["url"]) if settings.api else "default"
    for setting in SETTINGS:
        if setting.name in ("endpoint", "tracking_uri"):
            continue
        first = settings.traces if setting.guarded else settings
        owners = (first, settings.buffer, settings.disk, settings.enrichment, settings.privacy, settings.app)
        value = getattr(next(owner for owner in owners if hasattr(owner, setting.name)), setting.name)
        if setting.name == "headers":
            # Not even the names: a key that was written without one reads as a name.
            value = f"{len(value)}, hidden" if value else None
        elif setting.secret and value:
            value = "***"
        if setting.name == "workspace" and settings.namespace:
            # Whether it is a workspace, the server is asked when the first spans are sent.
            yield "workspace", f"{settings.namespace} (if there is one)", str(settings.sources["namespace"])
            continue
        yield setting.name, "-" if value in (None, ()) else written(value), str(settings.sources[setting.name])


def summarize_settings(settings: Settings) -> str:
    """Where spans go and all that was set, each with its source, in one line."""
    rows = list(describe_settings(settings))
    found = [f"{rows[0][1]} ({rows[0][2]})"]
    found += [f"{name} {value} ({source})" for name, value, source in rows[2:] if source != "default"]
    return ", ".join(found)
