"""Follow results that are work still to be done: streams, coroutines, futures, context managers, streaming responses.

The run of a call ends when its result is consumed, closed or garbage collected. The application gets an object that it
cannot distinguish from the result: generators and coroutines are wrapped into ones of the same kind; other objects stay
the same, and have a subclass as their class until the run ends.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from abc import ABCMeta
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from operator import length_hint
from types import AsyncGeneratorType, CoroutineType, GeneratorType, coroutine
from typing import Any, Protocol

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.tracing.generators import (
    GeneratorContext,
    wrap_async_generator,
    wrap_generator,
)

# Results that most functions have, which are complete.
COMPLETE_TYPES = frozenset({type(None), str, int, float, bool, bytes, dict, list, set, frozenset})
_NATIVE_GENERATORS = (GeneratorType, AsyncGeneratorType)
_DONE = object()
# The attribute that holds the stream: Starlette, Werkzeug, Django.
_RESPONSE_PACKAGES = frozenset({"starlette", "werkzeug", "django", "sse_starlette"})
_BODY_ATTRIBUTES = ("body_iterator", "response", "_iterator")
_HTTP_CLIENTS = frozenset({"httpx", "httpx2", "requests"})
# Files, cursors and sockets are iterators, but handles rather than work. A mock has every method.
_HANDLE_METHODS = ("read", "readline", "fetchone", "recv")
_ASYNCIO = frozenset({"asyncio", "_asyncio"})
_MOCKS = frozenset({"unittest", "mock"})
# A context manager with one of these is a client, connection, lock or executor, which may live as long as the process.
_ENDING_METHODS = frozenset("close aclose end finish shutdown release cleanup stop disconnect quit terminate".split())  # noqa: SIM905
_TYPING_MODULES = frozenset({"builtins", "typing", "typing_extensions", "abc", "contextlib"})
_METACLASSES = (type, ABCMeta, type(Protocol))
_MAX_SUBCLASSES = 256

_subclasses: dict[tuple[type, bool], type | None] = {}
# Followed objects by id. A weak reference in the object itself would be collected with it, without its callback.
_followed: dict[int, tuple[weakref.ref[Any], GeneratorContext]] = {}
_set_class = object.__dict__["__class__"].__set__


def follow(result: Any, run: GeneratorContext) -> Any:
    """Return the result, or what takes its place, and end the run when the work of the result is done."""
    kind = type(result)
    replaced = _DONE
    if run.release is not None:  # the result of an awaitable that was followed until now
        run.release()
        run.release = None
    if kind not in COMPLETE_TYPES:
        try:
            if kind is tuple:  # in Flask, a body with status and headers
                if result and type(result[0]) in _NATIVE_GENERATORS:
                    return (follow(result[0], run), *result[1:])
            else:
                replaced = _follow_object(result, kind, run)
        except BaseException as error:
            if must_propagate(error):
                run.on_end(None)
                raise
            logger.warning(
                "A result of type %s cannot be followed, so its span ends now: %s [%s]",
                kind.__name__,
                type(error).__name__,
                MessageCode.CONTENT_NOT_RECORDED,
            )
    if replaced is _DONE:
        run.on_end(None, result)
        return result
    return replaced


def _follow_object(result: Any, kind: type, run: GeneratorContext) -> Any:
    if kind in _NATIVE_GENERATORS or kind is CoroutineType:
        return _follow_native(result, run)
    modules = {str(base.__module__).partition(".")[0] for base in kind.__mro__}
    if not modules.isdisjoint(_MOCKS) or issubclass(kind, type):
        return _DONE
    if "concurrent" in modules or not modules.isdisjoint(_ASYNCIO):
        if not hasattr(kind, "add_done_callback"):
            return _DONE
        _watch(result, run)
        result.add_done_callback(lambda future: _on_done(future, run))
        return result
    if not modules.isdisjoint(_RESPONSE_PACKAGES):
        return _follow_response(result, run)
    if not modules.isdisjoint(_HTTP_CLIENTS) and hasattr(kind, "iter_lines"):
        is_open = getattr(result, "is_closed", None) is False or getattr(result, "_content", None) is False
        return result if is_open and _observe(result, kind, run, is_stream=True) else _DONE
    return _DONE if _has_any(kind, _HANDLE_METHODS) else _follow_protocol(result, kind, run)


def _follow_protocol(result: Any, kind: type, run: GeneratorContext) -> Any:
    """Follow an object that has the methods of an iterator, an awaitable or a context manager."""
    is_stream, is_awaitable = _yields_items(kind), hasattr(kind, "__await__")
    is_manager = _has_any(kind, ("__enter__", "__aenter__")) and not _has_any(kind, _ENDING_METHODS)
    if not (is_stream or is_awaitable or is_manager):
        return _DONE
    if _observe(result, kind, run, is_stream=is_stream):
        return result
    if is_stream and hasattr(kind, "__next__") and not hasattr(kind, "__enter__"):
        return _IteratorProxy(result, run)  # iterators in C: their class cannot be replaced
    if is_awaitable and hasattr(kind, "send"):
        return _follow_coroutine(result, run)  # coroutines that Cython compiled
    return _DONE


def _has_any(kind: type, names: Iterable[str]) -> bool:
    return any(hasattr(kind, name) for name in names)


def _yields_items(kind: type) -> bool:
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__")


def _watch(followed: Any, run: GeneratorContext, close: Callable[[], object] | None = None) -> None:
    """End the run when the object is garbage collected."""
    key = id(followed)

    def end(_: object) -> None:
        if close is not None:
            close()
        run.on_end(None)

    run.is_stream = _yields_items(type(followed))
    _followed[key] = weakref.ref(followed, end), run
    run.release = lambda: _release(key)


def _release(key: int) -> None:
    entry = _followed.pop(key, None)
    followed = entry[0]() if entry is not None else None
    if followed is not None and (original := vars(type(followed)).get("_followed_class")) is not None:
        with suppress(TypeError):
            _set_class(followed, original)


# Generators and coroutines


def _follow_native(result: Any, run: GeneratorContext) -> Any:
    if type(result) is CoroutineType:
        return _DONE if result.cr_frame is None else _follow_coroutine(result, run)
    wrapped: Any
    if type(result) is AsyncGeneratorType:
        if result.ag_frame is None:
            return _DONE
        # Its first step must be made in the event loop, which closes the generator at its end.
        is_begun = sys.get_asyncgen_hooks().firstiter is not None
        wrapped = wrap_async_generator(lambda: result, lambda _args, _kwargs: run, is_begun=is_begun)()
        if is_begun:
            with suppress(StopIteration):
                wrapped.__anext__().send(None)
        else:
            _watch(wrapped, run)
    else:
        if result.gi_frame is None:
            return _DONE
        if result.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE:
            return _follow_coroutine(result, run)
        wrapped = wrap_generator(lambda: result, lambda _args, _kwargs: run, is_begun=True)()
        next(wrapped)
    wrapped.__name__, wrapped.__qualname__ = result.__name__, result.__qualname__
    return wrapped


def _follow_coroutine(body: Any, run: GeneratorContext) -> Any:
    async def relay() -> Any:
        with run:
            result = await body
        return follow(result, run)

    @coroutine
    def relay_generator() -> Generator[Any, Any, Any]:
        with run:
            result = yield from body
        return follow(result, run)

    wrapped: Any = relay_generator() if type(body) is GeneratorType else relay()
    wrapped.__name__, wrapped.__qualname__ = (
        getattr(body, "__name__", relay.__name__),
        getattr(body, "__qualname__", relay.__name__),
    )
    # Closed together, so that Python warns once about a coroutine that was never awaited.
    _watch(wrapped, run, body.close)
    return wrapped


def _on_done(future: Any, run: GeneratorContext) -> None:
    if future.cancelled():
        # Of the same name in asyncio and concurrent.futures.
        run.on_end(sys.modules["asyncio"].CancelledError() if "asyncio" in sys.modules else None)
        return
    # `exception()` would silence asyncio's message about an exception that was never retrieved.
    error = getattr(future, "_exception", None)
    run.on_end(error, None if error is not None else future.result())


def _follow_response(result: Any, run: GeneratorContext) -> Any:
    if getattr(result, "direct_passthrough", False):  # a file
        return _DONE
    for name in _BODY_ATTRIBUTES:
        body = getattr(result, name, None)
        if _yields_items(type(body)):
            setattr(result, name, follow(body, run))
            return result
    return _DONE


# Other objects


class _IteratorProxy:
    """Stands for an iterator whose class is implemented in C."""

    __slots__ = ("__weakref__", "_run", "_target")

    def __init__(self, target: Any, run: GeneratorContext) -> None:
        self._target, self._run = target, run

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._target)

    def __iter__(self) -> _IteratorProxy:
        return self

    def __next__(self) -> Any:
        run = self._run
        with run:
            item = next(self._target)
        run.on_yield(item)
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __length_hint__(self) -> int:
        return length_hint(self._target)

    def __repr__(self) -> str:
        return repr(self._target)

    def __del__(self) -> None:
        self._run.on_end(None)


def _observe(result: Any, kind: type, run: GeneratorContext, *, is_stream: bool) -> bool:
    """Let an object report to the run until it ends; return whether that is possible."""
    entry = _followed.get(id(result))
    if entry is not None and entry[0]() is result:  # an inner traced function returned the same object
        entry[1].observers.append(run)
        return True
    subclass = _subclass_of(kind, is_stream)
    if subclass is None:
        return False
    try:
        _watch(result, run)
        _set_class(result, subclass)
    except TypeError:  # without weak references, or with another layout
        _followed.pop(id(result), None)
        return False
    return True


def _subclass_of(kind: type, is_stream: bool) -> type | None:
    key = kind, is_stream
    if key not in _subclasses:
        evict_oldest(_subclasses, _MAX_SUBCLASSES)[key] = _create_subclass(kind, is_stream)
    return _subclasses[key]


def _create_subclass(kind: type, is_stream: bool) -> type | None:
    # Code of the application that runs for each new class might register it.
    if type(kind) not in _METACLASSES or any(
        "__init_subclass__" in vars(base) and base.__module__ not in _TYPING_MODULES for base in kind.__mro__
    ):
        return None
    methods = {
        name: wrap(getattr(kind, name))
        for name, wrap in (_STREAM_METHODS if is_stream else _WORK_METHODS).items()
        if callable(getattr(kind, name, None))
    }
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    lies = {"__class__": property(lambda _: kind), "_followed_class": kind, "__slots__": ()}
    try:
        return type(kind)(kind.__name__, (kind,), {**names, **lies, **methods})
    except TypeError:  # a final class
        return None


def _run_of(followed: Any) -> GeneratorContext | None:
    """Return the run of an object; None if it is over, or if one of the object's own methods asks."""
    entry = _followed.get(id(followed))
    return entry[1] if entry is not None and not entry[1].is_stepping else None


_Method = Callable[..., Any]


def _observe_next(original: _Method) -> _Method:
    def __next__(self: Any) -> Any:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return original(self)
        with run:
            item = original(self)
        run.on_yield(item)
        return item

    return __next__


def _observe_anext(original: _Method) -> _Method:
    async def __anext__(self: Any) -> Any:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return await original(self)
        with run:
            item = await original(self)
        run.on_yield(item)
        return item

    return __anext__


def _observe_iter(original: _Method) -> _Method:
    def iterate(self: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = original(self, *args, **kwargs)
        run = _run_of(self)
        if run is None or iterator is self:
            return iterator
        return wrap_generator(lambda: _as_generator(iterator), lambda _args, _kwargs: run)()

    return iterate


def _observe_aiter(original: _Method) -> _Method:
    def iterate(self: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = original(self, *args, **kwargs)
        run = _run_of(self)
        if run is None or iterator is self:
            return iterator
        return wrap_async_generator(lambda: _as_async_generator(iterator), lambda _args, _kwargs: run)()

    return iterate


def _as_generator(iterator: Iterable[Any]) -> Generator[Any, Any, Any]:
    return iterator if isinstance(iterator, GeneratorType) else (item for item in iterator)


def _as_async_generator(iterator: Any) -> AsyncGenerator[Any, Any]:
    return iterator if isinstance(iterator, AsyncGeneratorType) else (item async for item in iterator)


def _observe_end(original: _Method) -> _Method:
    """Observe `close()`, `aclose()`, and `__exit__` of a stream."""

    def end(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = _run_of(self)
        if run is None:
            return original(self, *args, **kwargs)
        with run:
            result = original(self, *args, **kwargs)
        if inspect.isawaitable(result):
            return end_later(run, result)
        run.on_end(None)
        return result

    async def end_later(run: GeneratorContext, result: Awaitable[Any]) -> Any:
        with run:
            value = await result
        run.on_end(None)
        return value

    return end


def _observe_await(original: _Method) -> _Method:
    def __await__(self: Any) -> Generator[Any, Any, Any]:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return (yield from original(self))
        with run:
            result = yield from original(self)
        return follow(result, run)

    return __await__


class _Block(GeneratorContext):
    """The stream that a context manager returns for its `with` block: the run of the manager gets its items."""

    __slots__ = ("_run",)

    def __init__(self, run: GeneratorContext) -> None:
        super().__init__(run._context)  # noqa: SLF001 - of the same class
        self._run = run

    def record(self, item: Any) -> None:
        self._run.on_yield(item)


def _open_block(run: GeneratorContext, value: Any, manager: Any) -> Any:
    if value is manager:
        return value
    block = _Block(run)
    value = follow(value, block)
    run.block_value = None if not block.is_ended else value
    return value


def _observe_enter(original: _Method) -> _Method:
    def __enter__(self: Any) -> Any:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return original(self)
        run.enter_block()
        try:
            value = original(self)
        except BaseException as error:
            run.leave_block()
            run.on_end(error)
            raise
        return _open_block(run, value, self)

    return __enter__


def _observe_aenter(original: _Method) -> _Method:
    async def __aenter__(self: Any) -> Any:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return await original(self)
        run.enter_block()
        try:
            value = await original(self)
        except BaseException as error:
            run.leave_block()
            run.on_end(error)
            raise
        return _open_block(run, value, self)

    return __aenter__


def _observe_exit(original: _Method) -> _Method:
    def __exit__(self: Any, *details: Any) -> Any:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return original(self, *details)
        error = details[1] if len(details) > 1 else None
        try:
            is_suppressed = original(self, *details)
        except BaseException as raised:
            error, is_suppressed = raised, False
            raise
        finally:
            run.leave_block()
            run.on_end(None if is_suppressed else error, run.block_value)
        return is_suppressed

    return __exit__


def _observe_aexit(original: _Method) -> _Method:
    async def __aexit__(self: Any, *details: Any) -> Any:  # noqa: N807 - a method
        if (run := _run_of(self)) is None:
            return await original(self, *details)
        error = details[1] if len(details) > 1 else None
        try:
            is_suppressed = await original(self, *details)
        except BaseException as raised:
            error, is_suppressed = raised, False
            raise
        finally:
            run.leave_block()
            run.on_end(None if is_suppressed else error, run.block_value)
        return is_suppressed

    return __aexit__


_STREAM_METHODS: dict[str, Callable[[_Method], _Method]] = {
    "__next__": _observe_next,
    "__anext__": _observe_anext,
    "__iter__": _observe_iter,
    "__aiter__": _observe_aiter,
    **dict.fromkeys(("close", "aclose", "__exit__", "__aexit__"), _observe_end),
    # HTTP clients
    **dict.fromkeys(("iter_bytes", "iter_content"), _observe_iter),
    "aiter_bytes": _observe_aiter,
}
_WORK_METHODS: dict[str, Callable[[_Method], _Method]] = {
    "__await__": _observe_await,
    "__call__": _observe_end,  # a context manager that is used as a decorator makes a new one for each call
    "__enter__": _observe_enter,
    "__exit__": _observe_exit,
    "__aenter__": _observe_aenter,
    "__aexit__": _observe_aexit,
}
