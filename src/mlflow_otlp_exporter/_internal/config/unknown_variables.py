"""Variables that are named like a setting of this library and are none: most often mistyped, and without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlflow_otlp_exporter._internal.config.schema import SETTINGS

_PREFIX = "MLFLOW_OTLP_"


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Names of such variables, each with the setting that is likely meant.

    Args:
        environment: The environment.
    """
    variables = [name for setting in SETTINGS for name in setting.variables if name.startswith(_PREFIX)]
    known = [name.removeprefix(_PREFIX) for name in variables]
    for name in sorted(environment):
        rest = name.removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and rest not in known and environment[name].strip():
            import difflib  # only for a mistyped name

            yield name, next((_PREFIX + near for near in difflib.get_close_matches(rest, known, 1)), None)


def describe_unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """The same in words; values are not shown.

    Args:
        environment: The environment.
    """
    for name, meant in unknown_variables(environment):
        said = f"environment variable {name} is none of this library's, and has no effect"
        yield f"{said}: is {meant} meant?" if meant else said
