"""Which arguments and results of a traced function are recorded: selection by name, and redaction by argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError, must_propagate

RESULT = "return"  # as in `__annotations__`
# The form of the arguments of a call that could not be matched with the parameters.
UNMATCHED = frozenset({"args", "kwargs"})

Choice = bool | Sequence[str]
Redaction = Mapping[str, Callable[[Any], Any]] | Iterable[str]


def check_type(argument: str, value: Any, expected: type | tuple[type, ...], description: str) -> None:
    """Raise `TypeError` where a decorator is applied."""
    if not isinstance(value, expected):
        raise TypeError(f"traced({argument}=) is {type(value).__name__}: expected {description}")


class NameFilter:
    """Selects values by name: all, some, or all but those with a leading `-`."""

    def __init__(self, argument: str, choice: Choice) -> None:
        check_type(argument, choice, (bool, Sequence), "a boolean or a list of names, such as ['question', '-token']")
        if isinstance(choice, str | bytes):
            raise TypeError(f"traced({argument}={choice!r}): expected a boolean or a list of names")
        self.is_off, self.selects_all = choice is False, isinstance(choice, bool)
        items = [] if isinstance(choice, bool) else [str(name) for name in choice]
        self.is_off = self.is_off or (not self.selects_all and not items)
        self.excluded = frozenset(name[1:] for name in items if name.startswith("-"))
        self.included = frozenset(items) - {f"-{name}" for name in self.excluded}

    def select(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the selected values by name."""
        return {name: value for name, value in values.items() if self._selects(name)}

    def _selects(self, name: Any) -> bool:
        return name not in self.excluded and (not self.included or name in self.included)


class Capture:
    """What `@traced` records of the calls of one function."""

    def __init__(self, capture_inputs: Choice, capture_outputs: Choice, redact: Redaction | None) -> None:
        self._inputs = NameFilter("capture_inputs", capture_inputs)
        self._outputs = NameFilter("capture_outputs", capture_outputs)
        self._redactions = _parse_redactions(redact)
        self.has_inputs, self.has_outputs = not self._inputs.is_off, not self._outputs.is_off
        has_redacted_inputs = bool(self._redactions.keys() - {RESULT})
        self.changes_inputs = not self._inputs.selects_all or has_redacted_inputs
        self.changes_outputs = not self._outputs.selects_all or RESULT in self._redactions

    def check_names(self, parameters: Collection[str], function: str) -> None:
        """Raise `ConfigurationError` for a name that is no parameter of the function."""
        listed = {
            "capture_inputs": self._inputs.included | self._inputs.excluded,
            "redact": self._redactions.keys() - {RESULT},
        }
        for argument, argument_names in listed.items():
            if unknown := sorted(set(argument_names).difference(parameters)):
                raise ConfigurationError(
                    f"traced({argument}=) of {function} names {', '.join(unknown)}: expected parameters of the "
                    f"function ({', '.join(parameters) or 'it has none'})"
                )

    def select_inputs(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments to record; none if they could not be matched with the parameters."""
        if arguments.keys() == UNMATCHED:
            return {}
        selected = self._inputs.select(arguments)
        return {name: self._redact(name, value) for name, value in selected.items()}

    def select_outputs(self, result: Any) -> Any:
        """Return the part of the result to record; None if a selection by name does not apply to it."""
        if not self._outputs.selects_all:
            if isinstance(result, Mapping):
                result = self._outputs.select(result)
            elif (values := getattr(result, "__dict__", None)) is not None:
                result = self._outputs.select({name: values[name] for name in values if not name.startswith("_")})
            else:
                return None
        return self._redact(RESULT, result)

    def _redact(self, name: str, value: Any) -> Any:
        redaction = self._redactions.get(name, _keep)
        if redaction is None:
            return names.REDACTED
        try:
            return redaction(value)
        except BaseException as error:
            if must_propagate(error):
                raise
            return names.REDACTED


def _keep(value: Any) -> Any:
    return value


def _parse_redactions(redact: Redaction | None) -> dict[str, Callable[[Any], Any] | None]:
    """Return the functions by name; None hides the value."""
    if redact is None:
        return {}
    description = "names, or a mapping from names to functions"
    check_type("redact", redact, (Mapping, Iterable), description)
    if isinstance(redact, str | bytes):
        raise TypeError(f"traced(redact={redact!r}): expected {description}")
    if not isinstance(redact, Mapping):
        return dict.fromkeys(map(str, redact))
    for name, function in redact.items():
        if not callable(function):
            raise TypeError(f"traced(redact=) has a {type(function).__name__} for {name!r}: expected a function")
    return {str(name): function for name, function in redact.items()}


def parameter_names(signature: inspect.Signature | None, receivers: Collection[str]) -> list[str] | None:
    """Return the names that arguments can have; None if any name is possible."""
    parameters = list(signature.parameters.values()) if signature is not None else None
    if parameters is None or any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.name not in receivers]
