"""JSON of any value of an application, bounded in size, depth and work.

Nothing here raises because of a value, and nothing consumes an iterator. Types of other packages are recognised by the
names of their modules and methods, so that no package is imported.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from enum import Enum
from itertools import islice
from types import SimpleNamespace
from typing import Any

from mlflow_otlp_exporter._internal.common.bounded import DEFAULT_LIMIT, ELLIPSIS, bounded_text
from mlflow_otlp_exporter._internal.common.errors import must_propagate

_MAX_DEPTH = 40
# Limits that are tried in this order: characters of a text, items of a collection, values in total.
_BOUNDS = (
    *((DEFAULT_LIMIT, 100_000, 30_000), (20_000, 1000, 10_000)),
    *((2000, 200, 3000), (200, 50, 1000), (50, 10, 200)),
)
_NUMBERS = frozenset({int, float, bool, type(None)})
_TEXT, _CONTAINERS = frozenset({str}), frozenset({dict, list, tuple})
_MIN_VECTOR_LENGTH = 64  # from which looking at all types at once is faster
# Modules of types whose text is their JSON form: Decimal, UUID, Path, timedelta and others.
_TEXT_MODULES = frozenset({"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid", "zoneinfo"})
_MAX_REPR_LENGTH, _MAX_BYTES = 10_000, 100_000
# Larger arrays are described, with their first values.
_MAX_ARRAY_SIZE, _FIRST_VALUES, _MAX_CELLS = 10_000, 10, 20_000
_MAX_INTEGER_BITS = 1024
_ADDRESS = r" at 0x[0-9a-fA-F]+"
_CREDENTIAL = r"(?i)(api|access|secret|private|auth)_?key$|(^|_)token$|secret|passw|credential|authorization"
# Clients, connections, files and locks: their attributes are of no interest, and may hold credentials.
_RESOURCE_METHODS = ("__enter__", "__aenter__", "close", "aclose", "acquire")
_MISSING_VALUES = ("NAType", "NaTType")  # of pandas
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0e-\x1f]")
_OTHER = object()  # a conversion that does not apply
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def bounded_json(value: Any, limit: int = DEFAULT_LIMIT) -> str:
    """Return a value as JSON of at most `limit` characters; long texts and collections inside are cut and marked.

    A value that JSON cannot represent is converted to the most similar one, or to its `repr`.
    """
    try:
        if _is_plain(value, limit) and len(text := _encoder.encode(value)) <= limit:
            return text
    except (ValueError, RecursionError, RuntimeError):  # NaN; or changed by another thread
        pass
    for max_length, max_items, max_count in _BOUNDS:
        text = _encode_bounded(value, _Converter(max_length, max_items, max_count, limit))
        if len(text) <= limit:
            return text
    for share in (1, 2, 6):  # quoting makes up to six of one character
        quoted = json.dumps(bounded_text(text, (limit - 2) // share), ensure_ascii=False)
        if len(quoted) <= limit:
            break
    return quoted


def bounded_str(value: Any, limit: int = _MAX_REPR_LENGTH) -> str:
    """Return `str(value)`, at most `limit` characters; a note if the value's own code raises."""
    try:
        return bounded_text(str(value), limit)
    except BaseException as error:
        if must_propagate(error):
            raise
        return f"<{type(value).__name__}: no text ({type(error).__name__})>"


def _is_plain(value: Any, limit: int) -> bool:  # noqa: C901 - one loop: a call per container costs more than the loop
    """Return whether a value has exact JSON types only and is small enough for the C encoder.

    This costs less than the encoder, and bounds its work: shared parts count as often as they occur.
    """
    if type(value) not in _CONTAINERS:
        return type(value) in _NUMBERS or (type(value) is str and len(value) <= limit)
    size = depth = level_end = 0
    containers: list[Any] = [value]
    for index, container in enumerate(containers):
        if index >= level_end:
            depth, level_end = depth + 1, len(containers)
        items: Iterable[Any] = container
        if type(container) is dict:
            if not set(map(type, container)) <= _TEXT:
                return False
            items = container.values()
        size += len(container)
        if size > limit or depth > _MAX_DEPTH:
            return False
        if len(container) > _MIN_VECTOR_LENGTH and set(map(type, items)) <= _NUMBERS:
            continue
        for item in items:
            kind = type(item)
            if kind is str:
                size += len(item)
            elif kind in _CONTAINERS:
                containers.append(item)
            elif kind not in _NUMBERS:
                return False
    return size <= limit


def _encode_bounded(value: Any, converter: _Converter) -> str:
    try:
        return json.dumps(converter.convert(value, 0), ensure_ascii=False)
    except BaseException as error:
        if must_propagate(error):
            raise
        return json.dumps(_unreadable(type(value), error))


def _unreadable(kind: type, error: BaseException) -> str:
    return f"<{kind.__name__}: not readable ({type(error).__name__})>"


class _Converter:
    """Converts one value to JSON types, within limits.

    Only `type(value)` says what a value is: `isinstance` asks the value's own `__class__`.
    """

    __slots__ = ("_characters_left", "_max_items", "_max_length", "_parents", "_values_left")

    def __init__(self, max_length: int, max_items: int, max_count: int, limit: int) -> None:
        self._max_length, self._max_items = max_length, max_items
        self._values_left, self._characters_left = max_count, limit
        self._parents: set[int] = set()

    def convert(self, value: Any, depth: int) -> Any:
        self._values_left -= 1
        kind = type(value)
        if value is None or kind is bool:
            return value
        if self._values_left < 0:
            return ELLIPSIS
        if kind is str:
            return self._text(value)
        if kind is int:
            return self._integer(value)
        if kind is float:
            return value if math.isfinite(value) else str(value)
        if id(value) in self._parents:
            return f"<circular: {kind.__name__}>"
        if depth >= _MAX_DEPTH:
            return f"{ELLIPSIS} <{kind.__name__}>"
        self._parents.add(id(value))
        try:
            return self._convert_object(value, kind, depth + 1)
        except BaseException as error:
            if must_propagate(error):
                raise
            return _unreadable(kind, error)
        finally:
            self._parents.discard(id(value))

    def _text(self, text: str) -> str:
        text = bounded_text(text, max(1, min(self._max_length, self._characters_left)))
        self._characters_left -= len(text)
        return text

    def _integer(self, value: int) -> Any:
        # Python refuses to write integers of more than 4300 digits, and takes quadratic time for them.
        return value if value.bit_length() <= _MAX_INTEGER_BITS else self._text(hex(value))

    def _convert_object(self, value: Any, kind: type, depth: int) -> Any:
        for convert in (self._convert_scalar, self._convert_text, self._convert_collection):
            if (converted := convert(value, kind, depth)) is not _OTHER:
                return converted
        for convert in (self._convert_array, self._convert_frame, self._convert_fields):
            try:
                converted = convert(value, kind, depth)
            except BaseException as error:
                if must_propagate(error):
                    raise
                break  # a repr may still work
            if converted is not _OTHER:
                return converted
        return self._describe_object(value, kind, depth)

    def _convert_scalar(self, value: Any, kind: type, depth: int) -> Any:
        """Convert subclasses of JSON's types, whose methods may be overridden, and bytes."""
        if issubclass(kind, Enum):
            return self.convert(value.value, depth)
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if issubclass(kind, int):
            return self._integer(int.__add__(value, 0))
        if issubclass(kind, float):
            return self.convert(float.__float__(value), depth)
        if issubclass(kind, bytes | bytearray | memoryview):
            return self._convert_bytes(value)
        return _OTHER

    def _convert_text(self, value: Any, kind: type, depth: int) -> Any:
        """Convert types whose JSON form is a text."""
        if kind.__name__ in _MISSING_VALUES:
            return None
        if issubclass(kind, BaseException):
            message = bounded_str(value)
            return self._text(f"{kind.__name__}: {message}" if message else kind.__name__)
        if issubclass(kind, re.Pattern):
            return self.convert(value.pattern, depth)
        if kind is complex or hasattr(kind, "get_secret_value"):  # pydantic's secrets hide themselves
            return self._text(str(value))
        if not _TEXT_MODULES.isdisjoint(_module_roots(kind)):
            return self._text(value.isoformat() if hasattr(kind, "isoformat") else str(value))
        return _OTHER

    def _convert_collection(self, value: Any, kind: type, depth: int) -> Any:
        if issubclass(kind, Mapping):
            return self._convert_mapping(value, depth)
        if issubclass(kind, tuple) and isinstance(names := getattr(kind, "_fields", None), tuple):
            return self._convert_entries(zip(names, tuple.__iter__(value), strict=False), depth)
        if issubclass(kind, list | tuple | AbstractSet | Sequence | deque | ValuesView):
            return self._convert_items(value, len(value), depth)
        if issubclass(kind, type):
            return _safe_repr(value)
        if kind is SimpleNamespace:
            return self._convert_mapping(vars(value), depth)
        if hasattr(kind, "__wrapped__") and "wrapt" in _module_roots(kind):
            return self.convert(value.__wrapped__, depth)
        return _OTHER

    def _convert_bytes(self, value: bytes | bytearray | memoryview) -> str:
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        if size <= _MAX_BYTES:
            try:
                text = bytes(value).decode()
            except UnicodeDecodeError:
                text = ""
            if text and (
                text.isprintable() or not any(character < " " and not character.isspace() for character in text)
            ):
                return self._text(text)
        return f"<{size} bytes>" if size else ""

    def _convert_mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        for attempt in range(3):
            try:
                entries = list(islice(value.items(), self._max_items))
                break
            except RuntimeError:  # another thread changed it
                if attempt == 2:
                    raise
        converted = self._convert_entries(entries, depth)
        if (more := len(value) - len(entries)) > 0:
            converted[ELLIPSIS] = f"{more} more"
        return converted

    def _convert_entries(self, entries: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        converted = {}
        for key, item in entries:
            if self._values_left < 0:
                converted[ELLIPSIS] = ELLIPSIS
                break
            converted[self._key(key)] = self.convert(item, depth)
        return converted

    def _key(self, key: Any) -> str:
        kind = type(key)
        if kind is str:
            return self._text(key)
        if key is None or kind is bool:
            return json.dumps(key)
        if kind is int or kind is float:
            return bounded_str(key)
        if issubclass(kind, tuple):
            return self._text(bounded_str(key))
        text = self.convert(key, _MAX_DEPTH - 1)
        return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)

    def _convert_items(self, value: Iterable[Any], count: int, depth: int) -> list[Any]:
        items = list(islice(value, self._max_items))
        types = set(map(type, items))
        if issubclass(type(value), AbstractSet) and (types == {str} or types <= {int, float}):
            items.sort()
        if types == {float} and all(map(math.isfinite, items)):  # vectors: no call per value
            self._values_left -= len(items) // 16
            converted = items
        else:
            converted = []
            for item in items:
                if self._values_left < 0:
                    break
                converted.append(self.convert(item, depth))
        more = count - len(converted)
        return [*converted, f"{ELLIPSIS} {more} more"] if more > 0 else converted

    def _convert_array(self, value: Any, kind: type, depth: int) -> Any:
        """Convert arrays, tensors and scalars of NumPy, PyTorch, JAX and `array`."""
        if not hasattr(kind, "tolist") or hasattr(kind, "head"):
            return _OTHER
        if not hasattr(kind, "shape"):
            return self._convert_items(value, len(value), depth)
        shape = [int(length) for length in value.shape]
        size, dtype = math.prod(shape), str(value.dtype)
        device = str(getattr(value, "device", None) or "cpu").lower()
        is_in_memory = device.startswith(("cpu", "<cpu", "tfrt_cpu"))  # reading a device's memory would wait for it
        if not shape and dtype.startswith(("datetime64", "timedelta64")):
            return str(value)
        if size <= min(_MAX_ARRAY_SIZE, self._max_items**2) and is_in_memory:
            return self.convert(value.tolist(), depth)
        summary = {"shape": shape, "dtype": dtype}
        if is_in_memory:
            return {**summary, "first": self.convert(value.reshape(-1)[:_FIRST_VALUES].tolist(), depth)}
        return {**summary, "device": device}

    def _convert_frame(self, value: Any, kind: type, depth: int) -> Any:
        """Convert frames and series of pandas, polars and PyArrow: a frame becomes a list of rows."""
        is_arrow = hasattr(kind, "to_pylist")
        if not is_arrow and not (hasattr(kind, "head") and hasattr(kind, "shape")):
            return _OTHER
        shape: tuple[int, ...] = getattr(value, "shape", None) or (len(value),)
        row_count = max(1, min(self._max_items, _MAX_CELLS // max(1, math.prod(shape[1:]))))
        head = value.slice(0, row_count) if is_arrow else value.head(row_count)
        if hasattr(kind, "iterrows"):
            rows = head.to_dict(orient="records")
        else:
            method = next(name for name in ("to_pylist", "to_dicts", "to_list", "tolist") if hasattr(kind, name))
            rows = getattr(head, method)()
        return self._convert_items(rows, shape[0], depth)

    def _convert_fields(self, value: Any, kind: type, depth: int) -> Any:
        """Convert objects with declared fields, or with a method that returns them."""
        if (fields := getattr(kind, "model_fields", None)) is not None and hasattr(kind, "model_dump"):
            return self._convert_pydantic(value, fields, lambda: value.model_dump(warnings=False), depth)
        if isinstance(fields := getattr(kind, "__fields__", None), dict) and hasattr(kind, "dict"):
            return self._convert_pydantic(value, fields, value.dict, depth)
        names: Iterable[str] | None = None
        if hasattr(kind, "__dataclass_fields__"):
            names = [field.name for field in dataclasses.fields(value) if field.repr]
        elif hasattr(kind, "__attrs_attrs__"):
            names = [attribute.name for attribute in kind.__attrs_attrs__ if attribute.repr]
        elif hasattr(kind, "__struct_fields__"):  # msgspec
            names = kind.__struct_fields__
        if names is not None:
            return self._convert_attributes(value, names, depth)
        for name in ("model_dump", "to_dict"):
            if callable(getattr(kind, name, None)):
                converted = getattr(value, name)()
                if converted is not None and converted is not value:
                    return self.convert(converted, depth)
        return _OTHER

    def _convert_pydantic(self, value: Any, fields: Mapping[str, Any], dump: Callable[[], Any], depth: int) -> Any:
        try:
            return self.convert(dump(), depth)
        except BaseException as error:
            if must_propagate(error):
                raise
        # `exclude` of pydantic 2 is in the field, of pydantic 1 in its `field_info`.
        names = [
            name for name, field in fields.items() if not getattr(getattr(field, "field_info", field), "exclude", None)
        ]
        return self._convert_attributes(value, names, depth)

    def _convert_attributes(self, value: Any, names: Iterable[str], depth: int) -> dict[str, Any]:
        return self._convert_entries(_read_attributes(value, list(islice(names, self._max_items))), depth)

    def _describe_object(self, value: Any, kind: type, depth: int) -> Any:
        """Use the class's own `repr`; the public attributes of an object without one."""
        if getattr(kind, "__repr__", None) is not object.__repr__:
            return self._text(bounded_str(value) if "pandas" in _module_roots(kind) else _safe_repr(value))
        if not any(hasattr(kind, name) for name in _RESOURCE_METHODS):
            slots = (getattr(base, "__slots__", ()) for base in kind.__mro__)
            names = [name for group in slots for name in ((group,) if isinstance(group, str) else group)]
            names += list(getattr(value, "__dict__", ()))
            names = [name for name in names if isinstance(name, str) and not name.startswith("_")]
            if names:
                secrets = {name: "***" for name in names if re.search(_CREDENTIAL, name)}
                return {
                    **self._convert_attributes(value, [name for name in names if name not in secrets], depth),
                    **secrets,
                }
        return f"<{kind.__qualname__}>"


def _module_roots(kind: type) -> set[str]:
    return {str(base.__module__).partition(".")[0] for base in kind.__mro__}


def _read_attributes(value: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        try:
            yield name, getattr(value, name)
        except AttributeError:  # a slot or field without value
            continue
        except BaseException as error:
            if must_propagate(error):
                raise
            yield name, _unreadable(type(value), error)


def _safe_repr(value: Any) -> str:
    try:
        return re.sub(_ADDRESS, "", bounded_text(repr(value), _MAX_REPR_LENGTH))
    except BaseException as error:
        if must_propagate(error):
            raise
        return f"<{type(value).__name__}: no repr ({type(error).__name__})>"
