"""What a setting is: the type and default of its value, and the environment variables of each of the two groups."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from mlflow_otlp_exporter._internal.config.parsers import Parser


class SettingGroup(enum.Enum):
    """Whose settings apply to a server."""

    MLFLOW = "MLflow"
    OTLP = "OTLP"


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: The argument's name.
        parse: Turns what was written into the value; raises `ValueError` with what was expected.
        default: The value if nothing is given.
        help: One line for people.
        mlflow: Environment variables of MLflow's group; the first that is set wins.
        otlp: Environment variables of OTLP's group; the first that is set wins.
        own: Environment variables that belong to no group.
        guarded: True if variables of one group must not be used for a server that the other group named.
        secret: True if the value is never shown.
    """

    name: str
    parse: Parser
    default: Any
    help: str
    mlflow: tuple[str, ...] = ()
    otlp: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    guarded: bool = False
    secret: bool = False

    @property
    def variables(self) -> tuple[str, ...]:
        """All environment variables, in the order of the documentation."""
        return (*self.own, *self.mlflow, *self.otlp)

    def variables_for(self, group: SettingGroup) -> tuple[str, ...]:
        """The environment variables that count for a server of this group, the strongest first."""
        same, other = (self.mlflow, self.otlp) if group is SettingGroup.MLFLOW else (self.otlp, self.mlflow)
        return (*self.own, *same) if self.guarded else (*self.own, *same, *other)


def otlp_variables(name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"


def written(value: Any) -> str:
    """A value as it is written into a variable."""
    return ",".join(str(getattr(each, "pattern", each)) for each in value) if isinstance(value, tuple) else str(value)
