"""Where the value of a setting comes from: an argument, a variable of the group that counts, a file, the default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.mlflow_client_env import (
    CREDENTIALS_FILE,
    credentials_in_file,
    refuse_auth_plugin,
    refuse_sigv4,
)
from mlflow_otlp_exporter._internal.config.schema import DEFAULT_TRACKING_URI, SETTINGS
from mlflow_otlp_exporter._internal.config.server_settings import ServerSettings
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount, completed
from mlflow_otlp_exporter._internal.config.setting import Setting, SettingGroup, otlp_variables
from mlflow_otlp_exporter._internal.config.source import SettingSource
from mlflow_otlp_exporter._internal.config.urls import base_endpoint, parse_console_url, split_userinfo

BY_NAME = {setting.name: setting for setting in SETTINGS}
_GUARDED = tuple(setting for setting in SETTINGS if setting.guarded)


@dataclass(frozen=True)
class RawValue:
    """What was written for a setting, and where."""

    value: Any
    source: SettingSource

    def parsed(self, setting: Setting) -> Any:
        """What it means.

        Raises:
            ConfigurationError: It is wrong.
        """
        try:
            return setting.parse(self.value)
        except (ValueError, TypeError) as error:
            why, code = str(error), getattr(error, "code", MessageCode.INVALID_SETTING)
        # Out of the except block, or the error would carry the other one, and its text, as its context.
        shown = "not usable" if setting.secret else f"{_without_secrets(str(self.value))[:200]!r}"
        raise ConfigurationError(f"{self.source} is {shown}: {why}", code)


def _without_secrets(value: str) -> str:
    """Hides `user:password@` and the query of an address, also of one that is not well-formed."""
    value = value.partition("?")[0] if "://" in value else value
    head, at, tail = value.rpartition("@")
    return f"{head.partition('//')[0]}//***@{tail}" if at and "//" in head else value


class Resolver:
    """One resolution: arguments first, then the variables that count.

    Args:
        arguments: Values by the setting's name, and `credentials`; None means not given.
        environment: Environment variables.

    Raises:
        ConfigurationError: There is no such setting.
    """

    def __init__(self, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        unknown = sorted(set(arguments) - set(BY_NAME) - {"credentials"})
        if unknown:
            raise ConfigurationError(
                f"unknown setting {', '.join(unknown)}: expected some of {', '.join(BY_NAME)}, credentials"
            )
        self._arguments = {name: value for name, value in arguments.items() if value is not None}
        self._environment = environment
        self.account = ServiceAccount.found_in(self.value("service_account_dir", SettingGroup.MLFLOW)[0])

    def argument(self, name: str) -> RawValue | None:
        """What was given as an argument."""
        value = self._arguments.get(name)
        return None if value is None else RawValue(value, SettingSource("argument", name))

    def variable(self, *names: str) -> RawValue | None:
        """What the first of these variables that is set says."""
        # An empty variable counts as unset, as OpenTelemetry's specification has it.
        for name in names:
            if value := self._environment.get(name, "").strip():
                return RawValue(value, SettingSource("variable", name))
        return None

    def value(self, name: str, group: SettingGroup, *, arguments: bool = True) -> tuple[Any, SettingSource]:
        """The value of a setting, and where it came from."""
        setting = BY_NAME[name]
        raw = (self.argument(name) if arguments else None) or self.variable(*setting.variables_for(group))
        return (raw.parsed(setting), raw.source) if raw else (setting.default, SettingSource("default"))

    def values(self, names: Iterable[str], group: SettingGroup) -> tuple[dict[str, Any], dict[str, SettingSource]]:
        """The values of some settings by name, and where they came from."""
        found = {name: self.value(name, group) for name in names}
        return {name: value for name, (value, _) in found.items()}, {name: each for name, (_, each) in found.items()}

    def target(self) -> tuple[str, SettingGroup, SettingSource]:
        """Where spans go, by precedence; an OTLP endpoint's full address, or an MLflow server's base address."""
        traces_variable, base_variable = otlp_variables("ENDPOINT")
        endpoint, tracking_uri = BY_NAME["endpoint"], BY_NAME["tracking_uri"]
        if raw := self.argument("endpoint"):
            return raw.parsed(endpoint), SettingGroup.OTLP, raw.source
        if raw := self.argument("tracking_uri"):
            return raw.parsed(tracking_uri), SettingGroup.MLFLOW, raw.source
        if raw := self.variable(traces_variable):
            return raw.parsed(endpoint), SettingGroup.OTLP, raw.source
        if raw := self.variable("MLFLOW_TRACKING_URI"):
            return raw.parsed(tracking_uri), SettingGroup.MLFLOW, raw.source
        if raw := self.variable(base_variable):
            return raw.parsed(replace(endpoint, parse=base_endpoint)), SettingGroup.OTLP, raw.source
        return DEFAULT_TRACKING_URI, SettingGroup.MLFLOW, SettingSource("default")

    def api_elsewhere(self) -> tuple[str, SettingSource] | None:
        """An MLflow server that was named beside an OTLP endpoint."""
        raw = self.argument("tracking_uri") or self.variable("MLFLOW_TRACKING_URI")
        return (raw.parsed(BY_NAME["tracking_uri"]), raw.source) if raw else None

    def page(self, name: str) -> tuple[str | None, SettingSource]:
        """What the address of a console's page, given as the tracking URI, says of a setting."""
        raw = self.argument("tracking_uri") or self.variable("MLFLOW_TRACKING_URI")
        value = parse_console_url(raw.value).get(name) if raw else None
        return value, raw.source if raw and value else SettingSource("default")

    def server(self, url: str, group: SettingGroup, source: SettingSource, *, arguments: bool) -> ServerSettings:
        """How to reach a server: what the variables of its group and, for the server of spans, the arguments say."""
        url, userinfo = split_userinfo(url)
        values: dict[str, Any] = {}
        sources: dict[str, SettingSource] = {"url": source}
        for setting in _GUARDED:
            values[setting.name], sources[setting.name] = self.value(setting.name, group, arguments=arguments)
        if arguments and self.argument("headers"):
            # Merged over the group's own variable, as upstream does since 1.45 (up to 1.44 it threw the variable away).
            values["headers"] = {**self.value("headers", group, arguments=False)[0], **values["headers"]}
        if userinfo and (source.kind == "argument" or not (values["username"] and values["password"])):
            values |= userinfo
            sources |= dict.fromkeys(userinfo, source)
        if group is SettingGroup.MLFLOW and not (values["username"] and values["password"]):
            for name, found in credentials_in_file(self._environment.get("HOME", "")).items():
                if not values[name]:  # each where the environment has none, as MLflow does it
                    values[name], sources[name] = found, SettingSource("file", CREDENTIALS_FILE)
        if arguments and (raw := self.argument("credentials")):
            values["credentials"], sources["credentials"] = raw.value, raw.source
        unused = tuple(
            name
            for setting in _GUARDED
            for name in setting.variables
            if name not in setting.variables_for(group) and self.variable(name)
        )
        if group is SettingGroup.MLFLOW:
            completed(url, values, sources, self.account, self._environment)
            self._refuse_plugins(values)
        return ServerSettings(url=url, group=group, sources=sources, unused=unused, **values)

    def _refuse_plugins(self, values: Mapping[str, Any]) -> None:
        """What is left to the MLflow SDK, which is not in the app, unless a credential was given besides."""
        usable = values.get("credentials") or values["token"] or values["token_file"] or values["username"]
        if usable or "authorization" in values["headers"]:
            return
        if plugin := self.variable("MLFLOW_TRACKING_AUTH"):
            refuse_auth_plugin(plugin.source, plugin.value)
        if sigv4 := self.variable("MLFLOW_TRACKING_AWS_SIGV4"):
            refuse_sigv4(sigv4.source, sigv4.value)
