"""A mask over all that a span says: each text is masked by itself, also inside of JSON; what it fails at is hidden."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.privacy.json_walk import (
    DEEPEST,
    DuplicateKeysDict,
    dump_json,
    parse_json,
    unescaped,
)
from mlflow_otlp_exporter._internal.privacy.structural_keys import (
    is_class_path,
    is_field_name,
    is_structural,
    is_structural_inside,
)

FAILED = "[masked: the mask failed]"
# Smaller numbers are counts; cards' and phones' are not.
_SMALLEST_NUMBER = 10**9


class Mask:
    """Masks names, attributes and what is inside of them; never raises, and never lets through what it fails at.

    Args:
        function: From a text to the text that may be kept.
        names_too: Whether it is asked about names of fields as well. A function that replaces all it is given would
            leave nothing to tell them apart.
        failed: Called with what `function` has raised.
    """

    def __init__(self, function: Callable[[str], str], *, names_too: bool, failed: Callable[[Exception], None]) -> None:
        self._function, self._names_too, self._failed = function, names_too, failed

    def text(self, text: str) -> str:
        """A text that is no attribute's value, such as a span's name."""
        return str(self._guarded(lambda: self._of_text(text, "", 0, inside=True)))

    def name(self, name: Any) -> str:
        """The name of a field, or an attribute's key."""
        text = name if isinstance(name, str) else str(name)
        return text if not self._names_too and is_field_name(text) else self._asked(text)

    def value(self, key: str, value: Any) -> Any:
        """An attribute's value.

        Args:
            key: Its key, by which the few are known that are left alone.
            value: It.
        """
        if value is None or isinstance(value, bool):
            return value
        return self._guarded(lambda: self._of(value, key, 0, inside=False))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the value is not known to be harmless
            self._failed(error)
            return FAILED

    def _asked(self, text: str) -> str:
        try:
            masked = self._function(text)
            if not isinstance(masked, str):
                raise TypeError(f"a mask has to return a str, not {type(masked).__name__}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - it is the user's
            self._failed(error)
            return FAILED
        return masked

    def _of(self, value: Any, key: str, depth: int, *, inside: bool) -> Any:
        if isinstance(value, str):
            if is_structural_inside(key, value) if inside else is_structural(key, value):
                return value
            return self._of_text(str(value), key, depth, inside=inside)
        if isinstance(value, (bool, type(None))):
            return value
        if isinstance(value, (int, float)):
            return self._of_number(value)
        if isinstance(value, (bytes, bytearray)):
            return self._of_bytes(bytes(value))
        if isinstance(value, (Mapping, Sequence)):
            if depth >= DEEPEST:
                text = dump_json(value)
                masked = self._of_leaf(text)
                return value if masked == text else masked
            if isinstance(value, Mapping):
                return self._of_mapping(value, depth)
            return self._of_list(value, key, depth, inside=inside)
        return FAILED  # no type that a span's value may have: whoever makes text of it would make it unmasked

    def _of_mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        masked = {self.name(name): self._of(item, str(name), depth + 1, inside=True) for name, item in value.items()}
        same = not isinstance(value, DuplicateKeysDict) and masked.keys() == value.keys()
        return value if same and all(masked[name] is item for name, item in value.items()) else masked

    def _of_list(self, value: Sequence[Any], key: str, depth: int, *, inside: bool) -> Any:
        if is_class_path(key, value):
            return value
        # Texts of a list are of the attribute itself: the reasons why a model stopped, say.
        masked = [self._of(item, key, depth + 1, inside=inside) for item in value]
        return value if all(new is old for new, old in zip(masked, value, strict=True)) else masked

    def _of_text(self, text: str, key: str, depth: int, *, inside: bool) -> str:
        if not text:
            return text
        found = parse_json(text) if depth < DEEPEST else None
        if found is None:
            return self._of_leaf(text)
        masked = self._of(found, key, depth + 1, inside=inside)
        return text if masked is found else dump_json(masked)

    def _of_leaf(self, text: str) -> str:
        if "\\u" in text and (plain := unescaped(text)) != text and (masked := self._asked(plain)) != plain:
            return masked
        masked = self._asked(text)
        return text if masked == text else masked

    def _of_number(self, value: float) -> Any:
        if not abs(value) >= _SMALLEST_NUMBER or value != value or abs(value) == float("inf"):  # noqa: PLR0124 - NaN
            return value
        text = str(int(value)) if abs(value) < 1e25 else str(value)  # larger values are no identifiers
        masked = self._asked(text)
        return value if masked == text else masked

    def _of_bytes(self, value: bytes) -> bytes | str:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        masked = self._asked(text)
        return value if masked == text else masked


def make_mask(wanted: Any, failed: Callable[[Exception], None]) -> Mask | None:
    """The mask that the setting says; None for none.

    Args:
        wanted: A function, or names and expressions.
        failed: Called with what the mask has raised.
    """
    if wanted is None:
        return None
    if callable(wanted):
        return Mask(wanted, names_too=False, failed=failed)
    from mlflow_otlp_exporter._internal.privacy.patterns import masking  # few apps need the compiled patterns

    names: tuple[str | re.Pattern[str], ...] = tuple(wanted)
    return Mask(masking(names), names_too=True, failed=failed) if names else None
