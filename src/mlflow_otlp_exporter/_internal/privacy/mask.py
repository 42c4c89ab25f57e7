"""Apply a mask to every text in a value, also inside of JSON; a text for which the mask fails is hidden.

`redactor.py` calls it for each attribute, event, link and name of a span; the patterns are in `mask_patterns.py`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.privacy.json_walk import (
    MAX_DEPTH,
    DuplicateKeysDict,
    dump_json,
    parse_json,
    unescape,
)
from mlflow_otlp_exporter._internal.privacy.structural_keys import (
    is_class_path,
    is_field_name,
    is_structural,
    is_structural_field,
)

MASK_FAILED = "[masked: the mask failed]"
# Recorded headers whose whole value is a secret, whatever its form.
_HEADERS_TO_HIDE = r"(?i)http\.(?:request|response)\.header\..{0,100}(?:auth|cookie|token|secret|key|password)"
# Smaller numbers are counts; card and phone numbers are larger.
_MIN_MASKED_NUMBER = 10**9


class Mask:
    """Applies a function to names, keys and texts; never raises, and never returns a text that the function failed on.

    Names of fields are masked only with `mask_names`, because a function that replaces every text would make all names
    equal. With `hide_headers`, recorded HTTP headers that hold credentials are hidden. `on_error` is called with each
    exception of the function.
    """

    def __init__(
        self,
        function: Callable[[str], str],
        *,
        mask_names: bool,
        on_error: Callable[[BaseException], None],
        hide_headers: bool = False,
    ) -> None:
        self._function, self._mask_names, self._on_error = function, mask_names, on_error
        self._hide_headers = hide_headers

    def mask_text(self, text: str) -> str:
        """Mask a text outside of attributes, such as a span's name."""
        return str(self._fail_closed(lambda: self._mask_str(text, "", 0, inside=True)))

    def mask_name(self, name: Any) -> str:
        """Mask the name of a field or the key of an attribute."""
        text = name if isinstance(name, str) else str(name)
        return text if not self._mask_names and is_field_name(text) else self._apply_function(text)

    def mask_attribute(self, key: str, value: Any) -> Any:
        """Mask the value of an attribute, unless key and value are structural (see `structural_keys`)."""
        if value is None or isinstance(value, bool):
            return value
        if self._hide_headers and re.match(_HEADERS_TO_HIDE, key):
            return "[key]"
        return self._fail_closed(lambda: self._mask_value(value, key, 0, inside=False))

    def _fail_closed(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except BaseException as error:  # after any exception the value may hold a secret
            if must_propagate(error):
                raise
            self._on_error(error)
            return MASK_FAILED

    def _apply_function(self, text: str) -> str:
        try:
            masked: Any = self._function(text)
        except BaseException as error:  # a user's function may raise anything, also by sys.exit()
            if must_propagate(error):
                raise
            self._on_error(error)
            return MASK_FAILED
        if not issubclass(type(masked), str):
            self._on_error(TypeError(f"a mask must return a str, not {type(masked).__name__}"))
            return MASK_FAILED
        return str.__str__(masked)  # of a subclass: without its methods

    def _mask_value(self, value: Any, key: str, depth: int, *, inside: bool) -> Any:
        if isinstance(value, str):
            if is_structural_field(key, value) if inside else is_structural(key, value):
                return value
            return self._mask_str(str(value), key, depth, inside=inside)
        if isinstance(value, (bool, type(None))):
            return value
        if isinstance(value, (int, float)):
            return self._mask_number(value)
        if isinstance(value, (bytes, bytearray)):
            return self._mask_bytes(bytes(value))
        if isinstance(value, (Mapping, Sequence)):
            if depth >= MAX_DEPTH:
                text = dump_json(value)
                masked = self._mask_leaf(text)
                return value if masked == text else masked
            if isinstance(value, Mapping):
                return self._mask_mapping(value, depth)
            return self._mask_list(value, key, depth, inside=inside)
        return MASK_FAILED  # no type of attribute values: later code would convert it to text without the mask

    def _mask_mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        masked = {
            self.mask_name(name): self._mask_value(item, str(name), depth + 1, inside=True)
            for name, item in value.items()
        }
        is_same = not isinstance(value, DuplicateKeysDict) and masked.keys() == value.keys()
        return value if is_same and all(masked[name] is item for name, item in value.items()) else masked

    def _mask_list(self, value: Sequence[Any], key: str, depth: int, *, inside: bool) -> Any:
        if is_class_path(key, value):
            return value
        # Texts of a list belong to the attribute itself, such as `gen_ai.response.finish_reasons`.
        masked = [self._mask_value(item, key, depth + 1, inside=inside) for item in value]
        return value if all(new is old for new, old in zip(masked, value, strict=True)) else masked

    def _mask_str(self, text: str, key: str, depth: int, *, inside: bool) -> str:
        if not text:
            return text
        parsed = parse_json(text) if depth < MAX_DEPTH else None
        if parsed is None:
            return self._mask_leaf(text)
        masked = self._mask_value(parsed, key, depth + 1, inside=inside)
        return text if masked is parsed else dump_json(masked)

    def _mask_leaf(self, text: str) -> str:
        masked = self._apply_function(text)
        # In JSON that cannot be parsed, as it is truncated or has text around it, a match may hide behind an escape,
        # or go on after it.
        if "\\" in text and (plain := unescape(text)) != text:
            masked_plain = self._apply_function(plain)
            if masked_plain != plain and masked_plain != unescape(masked):
                return masked_plain
        return text if masked == text else masked

    def _mask_number(self, value: float) -> Any:
        if not abs(value) >= _MIN_MASKED_NUMBER or value != value or abs(value) == float("inf"):  # noqa: PLR0124 - NaN
            return value
        text = str(int(value)) if abs(value) < 1e25 else str(value)  # larger values are no identifiers
        masked = self._apply_function(text)
        return value if masked == text else masked

    def _mask_bytes(self, value: bytes) -> bytes | str:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        masked = self._mask_leaf(text)
        return value if masked == text else masked


def make_mask(setting: Any, on_error: Callable[[BaseException], None]) -> Mask | None:
    """Make the mask for the setting `mask`: a function, or names of patterns and expressions; None for no mask."""
    if setting is None:
        return None
    if callable(setting):
        return Mask(setting, mask_names=False, on_error=on_error)
    # Imported here, because few applications need the patterns.
    from mlflow_otlp_exporter._internal.privacy.mask_patterns import make_mask_function

    patterns: tuple[str | re.Pattern[str], ...] = tuple(setting)
    if not patterns:
        return None
    return Mask(make_mask_function(patterns), mask_names=True, on_error=on_error, hide_headers="keys" in patterns)
