"""Resolves arguments, environment variables, files and defaults to one frozen `Settings`, in this precedence.

There are two groups of sources. MLflow's: `tracking_uri=`, `MLFLOW_*`, `~/.mlflow/credentials`. OTLP's: `endpoint=`,
`OTEL_EXPORTER_OTLP_*`. The target comes from one of them. Headers, credentials and certificates from the variables of
one group are never used for a server that the other group names: an app that sends metrics to a vendor has the vendor's
key in `OTEL_EXPORTER_OTLP_HEADERS`, and it must not go to MLflow. Arguments always apply to the server of the spans.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config import parsers
from mlflow_otlp_exporter._internal.config.mlflow_client_env import (
    CREDENTIALS_FILE,
    read_credentials_file,
    reject_auth_plugin,
    reject_sigv4,
)
from mlflow_otlp_exporter._internal.config.models import (
    AppSettings,
    BufferSettings,
    EnrichmentSettings,
    GatewaySettings,
    PrivacySettings,
    ServerSettings,
    SettingGroup,
    Settings,
    SettingSource,
    SpoolSettings,
)
from mlflow_otlp_exporter._internal.config.schema import (
    BY_NAME,
    DEFAULT_TRACKING_URI,
    HIDE_VARIABLE,
    Setting,
    fields_of,
    otlp_variables,
)
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount, apply_service_account
from mlflow_otlp_exporter._internal.config.urls import (
    TRACES_PATH,
    hide_secrets,
    parse_base_endpoint,
    parse_console_url,
    split_userinfo,
)

_DEFAULT = SettingSource("default")
# Behind an OTLP endpoint may be a Collector, which stores and distributes spans itself, and others than MLflow may read
# what the instrumentation wrote: these other defaults of `configure()` apply towards MLflow only.
_DEFAULTS_TOWARDS_MLFLOW = frozenset({"compact", "spool", "handle_sigterm"})
_DESTINATION_HEADERS = (
    ("x-mlflow-experiment-id", ("experiment", "experiment_id")),
    ("x-mlflow-workspace", ("workspace",)),
    ("x-mlflow-run-id", ("run_id",)),
)


class RawValue(NamedTuple):
    """An unparsed value and its source."""

    value: Any
    source: SettingSource

    def parse(self, setting: Setting) -> Any:
        is_secret = setting.is_secret
        try:
            return setting.parse(self.value)
        except (ValueError, TypeError) as error:
            reason, code = str(error), getattr(error, "code", MessageCode.INVALID_SETTING)
            is_secret = is_secret or isinstance(error, parsers.SecretValueError)
        # Outside the except block: otherwise the error would carry the other one, and its text, as its context.
        shown = "not usable" if is_secret else f"{hide_secrets(str(self.value))[:200]!r}"
        raise ConfigurationError(f"{self.source} is {shown}: {reason}", code)


# Values that replace arguments, so that a test of an application never sends to a server that the application names.
overrides: dict[str, Any] = {}


def resolve(
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Resolve all settings; `defaults` replace the table's. Raises `ConfigurationError`."""
    return _Resolver(arguments, environment, defaults or {}).resolve()


def resolve_app(arguments: Mapping[str, Any]) -> AppSettings:
    return AppSettings(**_Resolver(arguments, None, {}).resolve_fields(AppSettings))


def find_enabled_source(arguments: Mapping[str, Any]) -> SettingSource:
    """Return what sets `enabled`, for the message that names it."""
    resolver = _Resolver(arguments, None, {})
    resolver.resolve_fields(AppSettings)
    return resolver._sources["enabled"]  # noqa: SLF001 - of this module


def resolve_buffer(arguments: Mapping[str, Any]) -> BufferSettings:
    return BufferSettings(**_Resolver(arguments, None, {}).resolve_fields(BufferSettings))


def resolve_gateway(arguments: Mapping[str, Any]) -> GatewaySettings:
    return GatewaySettings(**_Resolver(arguments, None, {}).resolve_fields(GatewaySettings))


class _Resolver:
    def __init__(
        self, arguments: Mapping[str, Any], environment: Mapping[str, str] | None, defaults: Mapping[str, Any]
    ) -> None:
        unknown = sorted(set(arguments) - set(BY_NAME) - {"credentials"})
        if unknown:
            raise ConfigurationError(
                f"unknown setting {', '.join(unknown)}: expected some of {', '.join(BY_NAME)}, credentials"
            )
        self._arguments = {name: value for name, value in {**arguments, **overrides}.items() if value is not None}
        self._environment = os.environ if environment is None else environment
        self._defaults = defaults
        self._group = SettingGroup.MLFLOW
        self._sources: dict[str, SettingSource] = {}
        self._account = ServiceAccount.read(self._value(BY_NAME["service_account_dir"], self._group)[0])

    def resolve(self) -> Settings:
        url, self._group, source = self._target()
        api: ServerSettings | None
        if self._group is SettingGroup.MLFLOW:
            api = self._server(url, self._group, source)
            traces, is_api_certain = api._replace(url=api.url + TRACES_PATH), True
        else:
            traces, is_api_certain = self._server(url, self._group, source), False
            api = None
            if override := self._rest_api_override():
                api = self._server(*override, use_arguments=False)
                is_api_certain = True
            elif traces.url.endswith(TRACES_PATH):  # a URL with a query is not MLflow's
                api = traces._replace(url=traces.url.removesuffix(TRACES_PATH))
        traces = traces._replace(headers=self._drop_conflicting_headers(traces.headers))
        values = self.resolve_fields(Settings)
        self._resolve_experiment(values)
        page, page_source = self._from_console_url("workspace")
        own = self._sources["workspace"].kind
        if page and (own == "default" or (page_source.kind == "argument" and own != "argument")):
            values["workspace"], self._sources["workspace"] = page, page_source
        return Settings(
            traces=traces,
            api=api,
            is_api_certain=is_api_certain,
            namespace=self._namespace(values, traces),
            buffer=BufferSettings(**self.resolve_fields(BufferSettings)),
            disk=SpoolSettings(**self.resolve_fields(SpoolSettings)),
            enrichment=EnrichmentSettings(**self.resolve_fields(EnrichmentSettings)),
            privacy=PrivacySettings(**self.resolve_fields(PrivacySettings)),
            app=AppSettings(**self.resolve_fields(AppSettings)),
            sources={**traces.sources, **self._sources},
            **values,
        )

    def _argument(self, name: str) -> RawValue | None:
        value = self._arguments.get(name)
        return None if value is None else RawValue(value, SettingSource("argument", name))

    def _variable(self, *names: str) -> RawValue | None:
        """Return the first of these variables that is set; an empty one is not, as OpenTelemetry specifies."""
        for name in names:
            if value := self._environment.get(name, "").strip():
                return RawValue(value, SettingSource("variable", name))
        return None

    def _value(self, setting: Setting, group: SettingGroup, *, use_arguments: bool = True) -> tuple[Any, SettingSource]:
        raw = (self._argument(setting.name) if use_arguments else None) or self._variable(*setting.variables_for(group))
        return (raw.parse(setting), raw.source) if raw else (setting.default, _DEFAULT)

    def resolve_fields(self, model: type) -> dict[str, Any]:
        """Return the values for a model, and remember their sources."""
        values: dict[str, Any] = {}
        for setting in fields_of(model):
            name = setting.name
            values[name], self._sources[name] = (
                self._hidden_contents(setting) if name == "hide" else self._value(setting, self._group)
            )
            applies = self._group is SettingGroup.MLFLOW or name not in _DEFAULTS_TOWARDS_MLFLOW
            if self._sources[name] is _DEFAULT and name in self._defaults and applies:
                values[name] = self._defaults[name]
        if model is SpoolSettings and values["durability"] == "every-span" and not values["spool"]:
            if self._sources["spool"] is not _DEFAULT:
                raise ConfigurationError(
                    f"{self._sources['durability']} is 'every-span': expected spool to be on",
                    MessageCode.CONFLICTING_SETTINGS,
                )
            values["spool"] = True
        if model is AppSettings and not self._argument("enabled"):
            disabled = self._variable("OTEL_SDK_DISABLED")
            if disabled and disabled.value.lower() == "true":  # the SDK makes no spans then
                values["enabled"], self._sources["enabled"] = False, disabled.source
        return values

    def _hidden_contents(self, setting: Setting) -> tuple[tuple[str, ...], SettingSource]:
        """Read `hide`, of which each variable is a switch of its own."""
        if raw := self._argument(setting.name):
            return raw.parse(setting), raw.source
        switch = setting._replace(parse=parsers.parse_boolean)
        variables = [raw for name in setting.variables if (raw := self._variable(name))]
        names = [raw.source.name for raw in variables if raw.parse(switch)]
        if not names:
            return (), _DEFAULT
        hidden = tuple(name.removeprefix(HIDE_VARIABLE).lower() for name in names)
        return hidden, SettingSource("variable", ", ".join(names))

    def _target(self) -> tuple[str, SettingGroup, SettingSource]:
        """Return the full URL of an OTLP endpoint, or the base URL of an MLflow server."""
        traces_variable, base_variable = otlp_variables("ENDPOINT")
        endpoint, tracking_uri = BY_NAME["endpoint"], BY_NAME["tracking_uri"]
        for raw, setting, group in (
            (self._argument("endpoint"), endpoint, SettingGroup.OTLP),
            (self._argument("tracking_uri"), tracking_uri, SettingGroup.MLFLOW),
            (self._variable(traces_variable), endpoint, SettingGroup.OTLP),
            (self._variable("MLFLOW_TRACKING_URI"), tracking_uri, SettingGroup.MLFLOW),
            (self._variable(base_variable), endpoint._replace(parse=parse_base_endpoint), SettingGroup.OTLP),
        ):
            if raw is not None:
                return raw.parse(setting), group, raw.source
        return DEFAULT_TRACKING_URI, SettingGroup.MLFLOW, _DEFAULT

    def _rest_api_override(self) -> tuple[str, SettingGroup, SettingSource] | None:
        """Return the MLflow server that is configured in addition to an OTLP endpoint."""
        raw = self._argument("tracking_uri") or self._variable("MLFLOW_TRACKING_URI")
        return (raw.parse(BY_NAME["tracking_uri"]), SettingGroup.MLFLOW, raw.source) if raw else None

    def _from_console_url(self, name: str) -> tuple[str | None, SettingSource]:
        """Read a setting from the URL of a console page that is set as tracking URI."""
        raw = self._argument("tracking_uri") or self._variable("MLFLOW_TRACKING_URI")
        value = parse_console_url(raw.value).get(name) if raw else None
        return value, raw.source if raw and value else _DEFAULT

    def _server(
        self, url: str, group: SettingGroup, source: SettingSource, *, use_arguments: bool = True
    ) -> ServerSettings:
        url, userinfo = split_userinfo(url)
        values: dict[str, Any] = {}
        sources: dict[str, SettingSource] = {"url": source}
        settings = fields_of(ServerSettings)
        for setting in settings:
            values[setting.name], sources[setting.name] = self._value(setting, group, use_arguments=use_arguments)
        if use_arguments and self._argument("headers"):
            # Merged over the group's own variable, as upstream does since 1.45 (up to 1.44 it ignored the variable).
            values["headers"] = {**self._value(BY_NAME["headers"], group, use_arguments=False)[0], **values["headers"]}
        if userinfo and (source.kind == "argument" or not (values["username"] and values["password"])):
            values |= userinfo
            sources |= dict.fromkeys(userinfo, source)
        if group is SettingGroup.MLFLOW and not (values["username"] and values["password"]):
            for name, value in read_credentials_file(self._environment.get("HOME", "")).items():
                if not values[name]:  # each one that the environment lacks, as in MLflow
                    values[name], sources[name] = value, SettingSource("file", CREDENTIALS_FILE)
        if use_arguments and (raw := self._argument("credentials")):
            values["credentials"], sources["credentials"] = raw.value, raw.source
        ignored_variables = tuple(
            name
            for setting in settings
            for name in setting.variables
            if name not in setting.variables_for(group) and self._variable(name)
        )
        if group is SettingGroup.MLFLOW:
            apply_service_account(url, values, sources, self._account, self._environment)
            self._reject_plugins(values)
        return ServerSettings(url=url, group=group, sources=sources, ignored_variables=ignored_variables, **values)

    def _reject_plugins(self, values: Mapping[str, Any]) -> None:
        """Reject credentials that need the MLflow SDK, unless others are set, too."""
        usable = values.get("credentials") or values["token"] or values["token_file"] or values["username"]
        if usable or "authorization" in values["headers"]:
            return
        if plugin := self._variable("MLFLOW_TRACKING_AUTH"):
            reject_auth_plugin(plugin.source, plugin.value)
        if sigv4 := self._variable("MLFLOW_TRACKING_AWS_SIGV4"):
            reject_sigv4(sigv4.source, sigv4.value)

    def _resolve_experiment(self, values: dict[str, Any]) -> None:
        """An argument beats both variables. Of two variables the id counts."""
        name_source, id_source = self._sources["experiment"], self._sources["experiment_id"]
        if name_source.kind == id_source.kind == "argument":
            raise ConfigurationError(
                "experiment= and experiment_id= are both set: expected one of them", MessageCode.CONFLICTING_SETTINGS
            )
        page, page_source = self._from_console_url("experiment_id")
        is_stronger = page_source.kind == "argument" and "argument" not in (name_source.kind, id_source.kind)
        if is_stronger or (page and not (values["experiment"] or values["experiment_id"])):
            values["experiment_id"], self._sources["experiment_id"] = page, page_source
            loser = "experiment"
        elif values["experiment_id"] and name_source.kind != "argument":
            loser = "experiment"
        elif values["experiment"]:
            loser = "experiment_id"
        else:
            return
        values[loser], self._sources[loser] = None, _DEFAULT

    def _drop_conflicting_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Drop headers of a variable that name another destination than an argument does."""
        raw = self._argument("headers")
        own = parsers.parse_headers(raw.value) if raw else {}
        conflicting = {
            header
            for header, names in _DESTINATION_HEADERS
            if header not in own and any(self._argument(name) for name in names)
        }
        return {name: value for name, value in headers.items() if name not in conflicting}

    def _namespace(self, values: dict[str, Any], traces: ServerSettings) -> str | None:
        """Return the pod's namespace if MLflow may have a workspace of this name and none is set."""
        if self._account is None or traces.group is not SettingGroup.MLFLOW or traces.sources["url"] is _DEFAULT:
            return None
        if values["workspace"] or "x-mlflow-workspace" in traces.headers:
            return None
        auth = self._variable("MLFLOW_TRACKING_AUTH")
        if auth and auth.value == "kubernetes-namespaced" and self._account.namespace:
            values["workspace"], self._sources["workspace"] = self._account.namespace, self._account.source("namespace")
            return None
        self._sources["namespace"] = self._account.source("namespace")
        return self._account.namespace
