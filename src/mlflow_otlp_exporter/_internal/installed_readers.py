"""Readers that other packages bring by entry point: loaded before the first span is enriched, and guarded.

A broken package costs only what its own reader would have added: errors and malformed results are ignored and logged
once, and a reader that fails or is slow ten times in a row is not called again.
"""

import functools
import time
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher, add_readers
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import EventView, Reader, SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, table_reader

GROUP = "mlflow_otlp_exporter.readers"
_MAX_FAILURES, _SLOW_SECONDS = 10, 0.1
_MAX_NAME_LENGTH = 100
_FAILED = "The reader %s of an installed package failed: %s [%s]"
_DISABLED = "The reader %s of an installed package is not called again: %s [%s]"
_JSON_TYPES = (str, int, float, dict, list, tuple)


class InstalledReaders:
    """The readers of this process that other packages brought."""

    are_loaded = False
    # The field that an attribute holds, by the key of the attribute, as the readers declare it.
    fields: Mapping[str, str] = {}

    @classmethod
    def load(cls) -> None:
        """Load all entry points. Without a lock: if two threads load at once, both add the same readers."""
        if not cls.are_loaded:
            cls.use(list(load_readers()))
            cls.are_loaded = True

    @classmethod
    def use(cls, readers: Sequence[Reader]) -> None:
        """Use these readers, and no other installed ones."""
        add_readers(readers)
        cls.fields = {key: field for reader in readers for field, keys in reader.fields.items() for key in keys}


class ExtensibleEnricher(Enricher):
    """An enricher that loads the installed readers before its first span."""

    def enrich(self, spans: Sequence[ReadableSpan]) -> list[EnrichedSpan | ReadableSpan]:
        InstalledReaders.load()
        self.enrich = super().enrich  # type: ignore[method-assign]  # later spans take the direct way
        return self.enrich(spans)


def load_readers() -> Iterator[Reader]:
    """Load all entry points, in the order of their names; those that are broken are logged."""
    points = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    for _, point in sorted(points.items()):
        try:
            yield from to_readers(point.load(), point.name)
        except BaseException as error:
            if must_propagate(error):
                raise
            _log_unusable(point, error)


def _log_unusable(point: EntryPoint, error: BaseException) -> None:
    reason = str(error) if isinstance(error, TypeError) else type(error).__name__
    logger.warning(
        "The reader %s (%s) of an installed package is not used: %s [%s]",
        point.name[:_MAX_NAME_LENGTH],
        point.value[:_MAX_NAME_LENGTH],
        reason[:_MAX_NAME_LENGTH],
        MessageCode.READER_FAILED,
    )


def to_readers(value: Any, name: str) -> list[Reader]:
    """Return guarded readers for a `Reader`, a `Dialect` or a list of them; raises TypeError."""
    if not isinstance(value, (Reader, Dialect)):
        if not isinstance(value, (list, tuple)):
            raise TypeError("expected a Reader, a Dialect or a list")
        return [reader for item in value for reader in to_readers(item, name)]
    reader = table_reader(value) if isinstance(value, Dialect) else value
    prefixes: Any = reader.prefixes
    if isinstance(prefixes, str) or not all(isinstance(prefix, str) for prefix in prefixes):
        raise TypeError("prefixes has to be a set of texts")
    if not callable(reader.read):
        raise TypeError("read has to be a function")
    return [Reader(str(reader.name), frozenset(prefixes), _Guard(name, reader).read, _check_fields(reader.fields))]


def _check_fields(fields: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(fields, Mapping) or any(
        isinstance(keys, str) or not all(isinstance(key, str) for key in keys) for keys in fields.values()
    ):
        raise TypeError("fields has to be a mapping from fields to keys of attributes")
    return {str(field): tuple(keys) for field, keys in fields.items()}


class _Guard:
    """Calls a reader of others, with a view that it cannot change."""

    def __init__(self, name: str, reader: Reader) -> None:
        self._name, self._reader, self._failure_count, self._has_logged = name, reader, 0, False

    def read(self, span: SpanView) -> NormalizedSpan | None:
        if self._failure_count >= _MAX_FAILURES:
            return None
        started_at, normalized = time.thread_time(), None
        try:
            normalized = read_span(self._reader, span)
            seconds = time.thread_time() - started_at
            problem = f"it takes {seconds:.1f} s for a span" if seconds > _SLOW_SECONDS else ""
        except BaseException as error:
            if must_propagate(error):
                raise
            problem = str(error) if isinstance(error, MalformedResultError) else f"{type(error).__name__} was raised"
        self._failure_count = self._failure_count + 1 if problem else 0
        is_disabled = self._failure_count == _MAX_FAILURES
        if problem and (is_disabled or not self._has_logged):
            self._has_logged = True
            message = _DISABLED if is_disabled else _FAILED
            logger.warning(message, self._name[:_MAX_NAME_LENGTH], problem, MessageCode.READER_FAILED)
        return normalized


class MalformedResultError(TypeError):
    """A reader returned what is no normalized span."""


def read_span(reader: Reader, span: SpanView) -> NormalizedSpan | None:
    """Call a reader with a view that it cannot change, and check its result; raises what the reader raises."""
    events = tuple(EventView(event.name, types.MappingProxyType(event.attributes)) for event in span.events)
    view = SpanView(span.name, span.scope, types.MappingProxyType(span.attributes), events)
    normalized = reader.read(view)
    if normalized is not None and not isinstance(normalized, NormalizedSpan):
        raise MalformedResultError(f"it returned {type(normalized).__name__}, not NormalizedSpan")
    for field, value in zip(NormalizedSpan._fields, normalized or (), strict=False):
        if value is not None and not _has_type(value, _field_types(NormalizedSpan)[field]):
            raise MalformedResultError(f"it returned {field} of a wrong type")
    return normalized


@functools.cache
def _field_types(model: type) -> Mapping[str, Any]:
    return typing.get_type_hints(model)


def _has_type(value: Any, expected: Any) -> bool:
    """Whether a value has the annotated type, with the fields of named tuples and the items of tuples."""
    if expected is Any:
        return isinstance(value, _JSON_TYPES)
    arguments: Sequence[Any] = typing.get_args(expected)
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _are_all(value, arguments[0])
    if origin is not None:  # a mapping
        return isinstance(value, dict) and _are_all(value, str)
    if expected is float:
        return isinstance(value, (int, float))
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        return False
    if hasattr(expected, "_fields"):
        return all(_has_type(item, kind) for item, kind in zip(value, _field_types(expected).values(), strict=True))
    return True


def _are_all(values: Iterable[Any], expected: Any) -> bool:
    return all(_has_type(value, expected) for value in values)
