"""The settings: arguments and environment variables, resolved by the table into one frozen `Settings`.

Two groups of sources exist. MLflow's: `tracking_uri=`, `MLFLOW_*`, `~/.mlflow/credentials`. OTLP's: `endpoint=`,
`OTEL_EXPORTER_OTLP_*`. The target comes from one of them, and headers, credentials and certificates from the
variables of one group are never used for a server that the other group named: an app that sends metrics to a vendor
has that vendor's key in `OTEL_EXPORTER_OTLP_HEADERS`, and it must not go to MLflow. What is given as an argument
always counts, for the server that spans are sent to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config import parsers
from mlflow_otlp_exporter._internal.config.app_settings import AppSettings
from mlflow_otlp_exporter._internal.config.buffer_settings import BufferSettings
from mlflow_otlp_exporter._internal.config.enrichment_settings import EnrichmentSettings
from mlflow_otlp_exporter._internal.config.privacy_settings import HIDE_VARIABLE, LONGEST_ATTACHMENT, PrivacySettings
from mlflow_otlp_exporter._internal.config.resolver import BY_NAME, Resolver
from mlflow_otlp_exporter._internal.config.server_settings import ServerSettings
from mlflow_otlp_exporter._internal.config.setting import Setting, SettingGroup
from mlflow_otlp_exporter._internal.config.source import SettingSource
from mlflow_otlp_exporter._internal.config.spool_settings import SpoolSettings
from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH


@dataclass(frozen=True)
class Settings:
    """All settings, resolved.

    Attributes:
        traces: The server that spans are sent to.
        api: MLflow's REST side; None if no address can be told from the settings.
        api_certain: False if `api` is a guess from an OTLP endpoint, behind which a Collector may be.
        experiment, experiment_id, workspace, run_id: The default destination.
        namespace: The pod's, whose workspace is used, if there is one, where none was given.
        service_account_dir: The folder of the pod's service account; None if it is not to be used.
        create_experiment: Whether a missing experiment is created.
        timeout: Seconds for the export of one request, with its retries.
        compression: `none`, `gzip` or `deflate`.
        max_request_size: Bytes that a request aims at; 0 for no limit.
        repair: Whether content that MLflow refuses is repaired.
        buffer: What waits in memory, and for how long.
        disk: What is kept on disk.
        enrichment: What is added to spans.
        privacy: What must not leave the app.
        app: What becomes of the app's spans before.
        sources: Where each value came from, by the setting's name.
    """

    traces: ServerSettings
    api: ServerSettings | None
    api_certain: bool
    experiment: str | None
    experiment_id: str | None
    workspace: str | None
    namespace: str | None
    service_account_dir: str | None
    run_id: str | None
    create_experiment: bool
    timeout: float
    compression: str
    max_request_size: int
    repair: bool
    buffer: BufferSettings
    disk: SpoolSettings
    enrichment: EnrichmentSettings
    privacy: PrivacySettings
    app: AppSettings
    sources: Mapping[str, SettingSource] = field(default_factory=dict, repr=False)

    @property
    def uploads(self) -> bool:
        """Whether images, sounds and files are uploaded."""
        return self.enrichment.attachments and self.api is not None

    @property
    def base64_max_length(self) -> int:
        """Characters of base64 that one of them may have on its way through the app."""
        return LONGEST_ATTACHMENT if self.uploads else self.privacy.base64_max_length


def _experiment(resolver: Resolver, group: SettingGroup) -> tuple[dict[str, Any], dict[str, SettingSource]]:
    """Name and id of the experiment: an argument beats both variables; of two variables the id counts."""
    name, name_source = resolver.value("experiment", group)
    number, number_source = resolver.value("experiment_id", group)
    if name_source.kind == number_source.kind == "argument":
        said = "experiment= and experiment_id= are both given: expected one of them"
        raise ConfigurationError(said, MessageCode.CONFLICTING_SETTINGS)
    if number and name_source.kind != "argument":
        name, name_source = None, SettingSource("default")
    elif name:
        number, number_source = None, SettingSource("default")
    page, page_source = resolver.page("experiment_id")
    stronger = page_source.kind == "argument" and "argument" not in (name_source.kind, number_source.kind)
    if stronger or (page and not (name or number)):
        name, name_source, number, number_source = None, SettingSource("default"), page, page_source
    return {"experiment": name, "experiment_id": number}, {
        "experiment": name_source,
        "experiment_id": number_source,
    }


def resolve(
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Resolves arguments and environment variables.

    Args:
        arguments: Values by the setting's name, and `credentials`; None means not given.
        environment: Environment variables; `os.environ` if None.
        defaults: Defaults that differ from the table's, as those of `configure()` do.

    Raises:
        ConfigurationError: A value is wrong; the message names it, its source and what was expected.
    """
    resolver = Resolver(arguments, os.environ if environment is None else environment)
    url, group, source = resolver.target()
    if group is SettingGroup.MLFLOW:
        api = resolver.server(url, group, source, arguments=True)
        traces, certain = replace(api, url=api.url + TRACES_PATH), True
    else:
        traces, certain = resolver.server(url, group, source, arguments=True), False
        api = None
        if elsewhere := resolver.api_elsewhere():
            api, certain = resolver.server(elsewhere[0], SettingGroup.MLFLOW, elsewhere[1], arguments=False), True
        elif traces.url.endswith(TRACES_PATH):  # an address with a query is no MLflow's
            api = replace(traces, url=traces.url.removesuffix(TRACES_PATH))
    values, sources = _experiment(resolver, group)
    traces = replace(traces, headers=_without_contradictions(resolver, traces.headers))
    for name in (
        "workspace",
        "service_account_dir",
        "run_id",
        "create_experiment",
        "timeout",
        "compression",
        "max_request_size",
        "repair",
    ):
        values[name], sources[name] = resolver.value(name, group)
        if sources[name].kind == "default" and defaults and name in defaults:
            values[name] = defaults[name]
    page, page_source = resolver.page("workspace")
    if page and (sources["workspace"].kind == "default" or page_source.kind == "argument" != sources["workspace"].kind):
        values["workspace"], sources["workspace"] = page, page_source
    values["namespace"] = _namespace(resolver, values, sources, traces)
    buffer, buffer_sources = _buffer(resolver, group)
    enrichment, enrichment_sources = _enrichment(resolver, group, defaults or {})
    disk, disk_sources = _disk(resolver, group, defaults or {})
    privacy, privacy_sources = _privacy(resolver, group)
    app, app_sources = _app(resolver, group)
    sources |= {**traces.sources, **buffer_sources, **disk_sources, **enrichment_sources, **privacy_sources}
    return Settings(
        traces=traces,
        api=api,
        api_certain=certain,
        buffer=buffer,
        disk=disk,
        enrichment=enrichment,
        privacy=privacy,
        app=app,
        sources={**sources, **app_sources},
        **values,
    )


def _namespace(
    resolver: Resolver, values: dict[str, Any], sources: dict[str, SettingSource], traces: ServerSettings
) -> str | None:
    """The pod's namespace, where MLflow may have a workspace of that name and none was given."""
    if resolver.account is None or traces.group is not SettingGroup.MLFLOW or traces.sources["url"].kind == "default":
        return None
    if values["workspace"] or "x-mlflow-workspace" in traces.headers:
        return None
    told = resolver.variable("MLFLOW_TRACKING_AUTH")
    if told and told.value == "kubernetes-namespaced" and resolver.account.namespace:
        values["workspace"], sources["workspace"] = resolver.account.namespace, resolver.account.source("namespace")
        return None
    sources["namespace"] = resolver.account.source("namespace")
    return resolver.account.namespace


def _enrichment(
    resolver: Resolver, group: SettingGroup, defaults: Mapping[str, Any]
) -> tuple[EnrichmentSettings, dict[str, SettingSource]]:
    values, sources = resolver.values(EnrichmentSettings.__dataclass_fields__, group)
    if sources["compact"].kind == "default" and group is SettingGroup.MLFLOW:
        # Behind an OTLP endpoint others than MLflow may read what the instrumentation wrote.
        values["compact"] = defaults.get("compact", values["compact"])
    return EnrichmentSettings(**values), sources


def _privacy(resolver: Resolver, group: SettingGroup) -> tuple[PrivacySettings, dict[str, SettingSource]]:
    values, sources = resolver.values([name for name in PrivacySettings.__dataclass_fields__ if name != "hide"], group)
    values["hide"], sources["hide"] = (), SettingSource("default")
    if raw := resolver.argument("hide"):
        values["hide"], sources["hide"] = raw.parsed(BY_NAME["hide"]), raw.source
    else:
        said = [raw for name in BY_NAME["hide"].own if (raw := resolver.variable(name))]
        if names := [raw.source.name for raw in said if raw.parsed(Setting("hide", parsers.boolean, None, ""))]:
            values["hide"] = tuple(name.removeprefix(HIDE_VARIABLE).lower() for name in names)
            sources["hide"] = SettingSource("variable", ", ".join(names))
    return PrivacySettings(**values), sources


def _without_contradictions(resolver: Resolver, headers: Mapping[str, str]) -> dict[str, str]:
    """Arguments beat variables, also where a variable holds a header that says the same as an argument."""
    kept = dict(headers)
    given = resolver.argument("headers")
    own = parsers.headers(given.value) if given else {}
    for header, names in (
        ("x-mlflow-experiment-id", ("experiment", "experiment_id")),
        ("x-mlflow-workspace", ("workspace",)),
        ("x-mlflow-run-id", ("run_id",)),
    ):
        if header not in own and any(resolver.argument(name) for name in names):
            kept.pop(header, None)
    return kept


def _buffer(resolver: Resolver, group: SettingGroup) -> tuple[BufferSettings, dict[str, SettingSource]]:
    values, sources = resolver.values(BufferSettings.__dataclass_fields__, group)
    return BufferSettings(**values), sources


def _disk(
    resolver: Resolver, group: SettingGroup, defaults: Mapping[str, Any]
) -> tuple[SpoolSettings, dict[str, SettingSource]]:
    # Behind an OTLP endpoint may be a Collector that keeps and fans out: nothing is kept here unless it is asked for.
    values, sources = resolver.values(SpoolSettings.__dataclass_fields__, group)
    for name in values:
        if name in defaults and sources[name].kind == "default" and group is SettingGroup.MLFLOW:
            values[name] = defaults[name]
    if values["durability"] == "every-span" and not values["spool"]:
        if sources["spool"].kind != "default":
            said = f"{sources['durability']} is 'every-span': expected spool to be on"
            raise ConfigurationError(said, MessageCode.CONFLICTING_SETTINGS)
        values["spool"] = True
    return SpoolSettings(**values), sources


def _app(resolver: Resolver, group: SettingGroup) -> tuple[AppSettings, dict[str, SettingSource]]:
    values, sources = resolver.values(AppSettings.__dataclass_fields__, group)
    disabled = resolver.variable("OTEL_SDK_DISABLED")
    if disabled and disabled.value.lower() == "true" and not resolver.argument("enabled"):
        # The SDK makes no spans then, whatever is configured.
        values["enabled"], sources["enabled"] = False, disabled.source
    return AppSettings(**values), sources


def resolve_app(arguments: Mapping[str, Any], *, environment: Mapping[str, str] | None = None) -> AppSettings:
    """Resolves what becomes of the app's spans, where the exporter was made by hand.

    Args:
        arguments: Values by the setting's name; None means not given.
        environment: Environment variables; `os.environ` if None.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return _app(Resolver(arguments, os.environ if environment is None else environment), SettingGroup.MLFLOW)[0]


def resolve_buffer(arguments: Mapping[str, Any], *, environment: Mapping[str, str] | None = None) -> BufferSettings:
    """Resolves what a span processor is given.

    Args:
        arguments: Values by the setting's name; None means not given.
        environment: Environment variables; `os.environ` if None.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return _buffer(Resolver(arguments, os.environ if environment is None else environment), SettingGroup.MLFLOW)[0]
