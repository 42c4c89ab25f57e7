"""The span processor with the real exporter: what it sends, when, and that the app never waits."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter, MLflowSpanProcessor
from mlflow_otlp_exporter._internal.common.in_flight import Ticket
from mlflow_otlp_exporter._internal.config.models import BufferSettings
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.processing.worker import TraceWorker
from support.children import in_child
from support.markers import SECRET
from support.scripted_server import Answer, ScriptedServer
from support.spans import Prompting, finished
from support.traces import until

STALLED = Answer(delay=60)
# Python 3.12 warns of just what is tested here.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Bench:
    """A provider with our processor, and a server that notes what it gets."""

    def __init__(self, server: ScriptedServer, exporter: MLflowSpanExporter | None = None, **settings: Any) -> None:
        timeout = settings.pop("timeout", 20)
        self.server = server
        self.exporter = exporter or MLflowSpanExporter(
            server.traces_url, experiment_id="1", timeout=timeout, credentials=SECRET
        )
        self.processor = MLflowSpanProcessor(self.exporter, **settings)
        self.provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
        self.provider.add_span_processor(Prompting())
        self.provider.add_span_processor(self.processor)
        self.tracer = self.provider.get_tracer("tests")

    def requests(self) -> list[list[str]]:
        return [[span.name for span in request.spans()] for request in self.server.to("/v1/traces")]

    def names(self) -> list[str]:
        return [name for request in self.requests() for name in request]

    def trace(self, name: str, children: int = 0) -> None:
        with self.tracer.start_as_current_span(name):
            for number in range(children):
                self.tracer.start_span(f"{name}/{number}").end()


@contextmanager
def bench(server: ScriptedServer, exporter: MLflowSpanExporter | None = None, **settings: Any) -> Iterator[Bench]:
    made = Bench(server, exporter, **settings)
    try:
        yield made
    finally:
        made.processor.shutdown(20_000)


def test_complete_trace_is_sent_without_flush(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server) as made:
        begin = time.monotonic()
        made.trace("root", children=3)
        (request,) = scripted_server.wait_for(1)
        assert time.monotonic() - begin < 20  # a busy machine's share included; what is not whole is held for 30
        assert [span.name for span in request.spans()] == ["root/0", "root/1", "root/2", "root"]


def test_trace_in_progress_is_not_split(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server) as made, made.tracer.start_as_current_span("long"):
        made.tracer.start_span("long/child").end()
        made.tracer.start_span("other", context=Context()).end()
        scripted_server.wait_for(1)
        assert made.requests() == [["other"]]
    assert made.requests() == [["other"], ["long/child", "long"]]


def test_small_traces_share_one_request(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server, linger=60) as made:
        for number in range(20):
            made.trace(f"trace {number}")
        made.processor.force_flush()
        assert [len(request) for request in made.requests()] == [20]


def test_open_trace_is_sent_after_max_age(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server, hold=0.2) as made, made.tracer.start_as_current_span("root"):
        made.tracer.start_span("first").end()
        scripted_server.wait_for(1)
        assert made.requests() == [["first"]]
    assert made.requests() == [["first"], ["root"]]


def test_late_child_is_sent_with_its_root(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server) as made:
        with made.tracer.start_as_current_span("root"):
            child = made.tracer.start_span("child")
        child.end()
        scripted_server.wait_for(1)
        assert made.requests() == [["root", "child"]]


def test_traces_with_remote_parent_or_two_roots_are_sent(scripted_server: ScriptedServer) -> None:
    remote = NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1)))
    with bench(scripted_server) as made:
        one, two = (made.tracer.start_span(name, context=set_span_in_context(remote)) for name in ("one", "two"))
        one.end()
        two.end()
        scripted_server.wait_for(1)
        assert made.requests() == [["one", "two"]]


def test_unsampled_spans_are_ignored(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server) as made:
        quiet = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        quiet.add_span_processor(made.processor)
        quiet.get_tracer("x").start_span("unsampled").end()
        assert made.processor.force_flush()
    assert made.requests() == []


def test_traces_of_50_threads_stay_whole(scripted_server: ScriptedServer) -> None:
    barrier = threading.Barrier(50)

    def agent(number: int) -> None:
        barrier.wait()
        for turn in range(4):
            made.trace(f"{number}.{turn}", children=5)

    with bench(scripted_server) as made:
        threads = [threading.Thread(target=agent, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made.processor.force_flush()
    whole(made, 200, 6)


def test_traces_of_asyncio_tasks_stay_whole(scripted_server: ScriptedServer) -> None:
    async def agent(number: int) -> None:
        with made.tracer.start_as_current_span(str(number)):
            for child in range(5):
                await asyncio.sleep(0)
                with made.tracer.start_as_current_span(f"{number}/{child}"):
                    await asyncio.sleep(0)

    async def all_agents() -> None:
        await asyncio.gather(*(agent(number) for number in range(100)))

    with bench(scripted_server) as made:
        asyncio.run(all_agents())
        assert made.processor.force_flush()
    whole(made, 100, 6)


def whole(made: Bench, traces: int, spans: int) -> None:
    """Each trace came in one request, each span once."""
    seen: set[bytes] = set()
    for request in scripted_traces(made):
        for trace_id, count in request.items():
            assert trace_id not in seen
            assert count == spans
            seen.add(trace_id)
    assert len(seen) == traces


def scripted_traces(made: Bench) -> list[dict[bytes, int]]:
    found = []
    for request in made.server.to("/v1/traces"):
        counts: dict[bytes, int] = {}
        for span in request.spans():
            counts[span.trace_id] = counts.get(span.trace_id, 0) + 1
        found.append(counts)
    return found


def test_requests_have_target_size_and_whole_traces(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", max_request_size=10_000)
    with bench(scripted_server, exporter, linger=60) as made:
        for number in range(10):
            with made.tracer.start_as_current_span(f"root {number}"):
                made.tracer.start_span("child", attributes={"text": "x" * 4000}).end()
        assert made.processor.force_flush()
    assert [len(request) for request in made.requests()] == [4, 4, 4, 4, 4]
    assert all(len(request.content) <= 10_000 for request in scripted_server.requests)


def test_request_with_run_has_at_most_100_roots(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", run_id="r")
    with bench(scripted_server, exporter, linger=0.5) as made:
        for number in range(250):
            made.trace(str(number))
        assert made.processor.force_flush()
    counts = [len(request) for request in made.requests()]
    assert sum(counts) == 250
    assert max(counts) <= 100


# Limits, and servers that are slow or away


def test_burst_of_5000_spans_to_slow_server_drops_none(scripted_server: ScriptedServer) -> None:
    go = threading.Event()
    scripted_server.answer(Answer(200, delay=3, hold=go))
    with bench(scripted_server) as made:
        for number in range(500):
            made.trace(str(number), children=9)
        go.set()  # the app did not wait for the server
        assert made.processor.force_flush(60_000)
    assert len(made.names()) == len(set(made.names())) == 5000
    assert made.exporter.stats().dropped == 0


def test_memory_is_bounded_while_server_is_unavailable(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(STALLED)
    limit = 2_000_000
    with bench(scripted_server, timeout=30, buffer_bytes=limit) as made:
        worker = made.processor._worker
        assert worker is not None
        largest = 0
        for _ in range(60):
            for _ in range(10):
                made.tracer.start_span("large", attributes={"text": "x" * 10_000}).end()
            made.processor.force_flush(1)
            worker._safe_tick()  # what the worker does anyway, a tick later
            largest = max(largest, worker._buffer.byte_count + worker._in_flight.byte_count)
        # One tick's worth of spans may come before the worker has seen the limit.
        assert 0.9 * limit < largest < limit + 300_000
        refused = made.exporter.stats().dropped
        assert refused > 300
        assert made.processor._worker is not None
        assert worker.pending_count() + refused == 600
        made.processor.shutdown(500)
    told = [line for line in caplog.messages if "the buffer is full" in line]
    assert [line.endswith("more spans] [MLO-701]") for line in told] == [
        False,
        True,
    ]  # at once, and the rest at the end


def test_full_buffer_recovers_with_server(scripted_server: ScriptedServer) -> None:
    go = threading.Event()
    scripted_server.answer(Answer(200, hold=go), then=Answer(200))
    with bench(scripted_server, buffer_spans=10) as made:
        for number in range(10):
            made.trace(str(number))
        scripted_server.wait_for(1)
        for number in range(10, 40):
            made.trace(str(number))
        until(lambda: made.exporter.stats().dropped)
        go.set()
        made.processor.force_flush()
        refused = made.exporter.stats().dropped
        made.trace("after")
        assert made.processor.force_flush()
    assert "after" in made.names()
    assert len(made.names()) == 41 - refused


def test_flush_keeps_timeout_while_server_stalls(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(STALLED)
    with bench(scripted_server, timeout=30) as made:
        made.trace("stuck")
        begin = time.monotonic()
        assert made.processor.force_flush(300) is False
        assert 0.25 < time.monotonic() - begin < 20  # and not the time-out of 30
        scripted_server.close()
        made.processor.shutdown(500)


def test_flush_returns_false_if_spans_are_dropped(scripted_server: ScriptedServer) -> None:
    # A refusal of a single span counts when it is repeated.
    scripted_server.answer(Answer(400), Answer(400), then=Answer(200))
    with bench(scripted_server) as made:
        made.trace("refused")
        assert made.processor.force_flush() is False
        made.trace("taken")
        assert made.processor.force_flush() is True


def test_shutdown_keeps_timeout_while_server_stalls(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(STALLED)
    made = Bench(scripted_server, timeout=30)
    made.trace("stuck")
    begin = time.monotonic()
    made.processor.shutdown(500)
    assert time.monotonic() - begin < 20
    scripted_server.close()


def test_shutdown_sends_buffered_spans(scripted_server: ScriptedServer) -> None:
    made = Bench(scripted_server)
    with made.tracer.start_as_current_span("open"):
        made.tracer.start_span("ended").end()
        made.provider.shutdown()
    assert made.names() == ["ended"]


def test_spans_after_shutdown_are_dropped_and_counted(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    made = Bench(scripted_server)
    made.processor.shutdown()
    made.trace("late", children=2)
    assert made.processor.force_flush() is True
    made.processor.shutdown()
    assert made.exporter.stats().dropped == 3
    assert caplog.text.count("ended after shutdown") == 1
    assert made.requests() == []


def test_unused_processor_starts_no_thread(scripted_server: ScriptedServer) -> None:
    before = set(threading.enumerate())
    with bench(scripted_server) as made:
        assert made.processor.force_flush()
        assert set(threading.enumerate()) <= before


# Faults


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), RuntimeError("x"), MemoryError()])
def test_worker_survives_exception_of_the_pipeline(
    scripted_server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")
    pipeline = exporter._pipeline
    assert pipeline is not None
    submit, errors = pipeline.submit, [error]

    def submit_or_raise(spans: list[ReadableSpan], track: Callable[[int, int], Ticket]) -> None:
        if errors:
            raise errors.pop()
        submit(spans, track)

    monkeypatch.setattr(pipeline, "submit", submit_or_raise)
    with bench(scripted_server, exporter) as made:
        made.trace("lost")
        assert made.processor.force_flush() is False
        assert exporter.stats().dropped == 1
        made.trace("after")
        assert made.processor.force_flush() is True
    assert made.names() == ["after"]
    assert type(error).__name__ in caplog.text


def test_dead_worker_thread_is_restarted(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server) as made:
        made.trace("first")
        assert made.processor.force_flush()
        worker = made.processor._worker
        assert worker is not None
        assert worker._thread is not None
        # As good as dead: a thread that has ended, which a gevent kill or a failed fork leaves behind.
        dead = threading.Thread(target=lambda: None)
        dead.start()
        dead.join()
        alive, worker._thread = worker._thread, dead
        worker._is_thread_checked = False
        made.trace("second")
        assert worker._thread is not dead
        scripted_server.wait_for(2)
        worker._is_stopped = True
        for _ in range(2):
            worker._events.put(None)  # both of them hear it
        alive.join(5)
    assert made.names() == ["first", "second"]


def test_span_that_cannot_be_encoded_does_not_affect_others(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(scripted_server) as made:
        with made.tracer.start_as_current_span("root") as root:
            bad = made.tracer.start_span("bad")
            bad._kind = "no kind"  # type: ignore[attr-defined]
            bad.end()
            assert root.is_recording()
        assert made.processor.force_flush() is False
        assert (made.exporter.stats().delivered, made.exporter.stats().dropped) == (1, 1)
    assert made.names() == ["root"]
    assert "could not be encoded (KeyError)" in caplog.text


@FORKS
def test_fork_with_spans_in_flight_sends_each_span_once(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(200, delay=0.3), then=Answer(200))
    with bench(scripted_server) as made:
        made.trace("parent, being sent")
        scripted_server.wait_for(1)
        made.trace("parent, not handed over")
        open_span = made.tracer.start_span("parent, open")

        def child() -> bool:
            made.trace("child")
            return made.processor.force_flush() and made.exporter.stats().delivered == 1

        assert in_child(child)
        open_span.end()
        made.trace("parent, after")
        assert made.processor.force_flush()
    assert sorted(made.names()) == [
        "child",
        "parent, after",
        "parent, being sent",
        "parent, not handed over",
        "parent, open",
    ]


@FORKS
def test_fork_while_other_threads_hold_locks_does_not_deadlock(scripted_server: ScriptedServer) -> None:
    def child() -> bool:
        made.trace("child")
        return made.processor.force_flush(50_000)

    with bench(scripted_server) as made:
        made.trace("warm")
        made.processor.force_flush()
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                made.trace("busy", children=3)
                made.processor.force_flush(1)

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert in_child(child)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert made.names().count("child") == 10


def test_span_end_in_signal_handler_or_finalizer_never_blocks(scripted_server: ScriptedServer) -> None:
    with bench(scripted_server, buffer_spans=50) as made:
        previous = signal.signal(signal.SIGALRM, lambda *_: made.trace("in the handler"))
        try:
            for _ in range(200):
                # One shot each: handlers that overtake each other on a busy machine would nest without end.
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                for _ in range(20):
                    made.trace("outside")  # with a full buffer now and then
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        made.processor.force_flush()
        assert "in the handler" in made.names()


def test_span_that_ends_during_shutdown_is_delivered_or_counted(scripted_server: ScriptedServer) -> None:
    made, stop, ended = Bench(scripted_server), threading.Event(), [0, 0]

    def agent(number: int) -> None:
        while not stop.is_set() and ended[number] < 10_000:  # what is queued is settled within the shutdown's time
            made.trace("span")
            ended[number] += 1

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    scripted_server.wait_for(1)
    made.processor.shutdown(60_000)
    stop.set()
    for thread in threads:
        thread.join()
    stats = made.exporter.stats()
    assert stats.delivered + stats.dropped == sum(ended)
    assert stats.delivered == len(made.names())


def test_enqueue_that_outlasts_shutdown_counts_the_span_as_dropped(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, resume = threading.Event(), threading.Event()

    def hold(_: ReadableSpan) -> None:
        recording.set()
        assert resume.wait(30)

    monkeypatch.setattr(Pipeline, "span_recorder", staticmethod(hold))
    made = Bench(scripted_server)
    agent = threading.Thread(target=made.trace, args=("span",))
    agent.start()
    assert recording.wait(30)
    made.processor.shutdown()
    resume.set()
    agent.join()
    assert (made.exporter.stats().delivered, made.exporter.stats().dropped) == (0, 1)


class Settling(Pipeline):
    """Settles requests when the worker has seen that it is full, in a thread that then stands still."""

    span_recorder = None
    dropped_count = 0

    def __init__(self) -> None:
        self.worker = TraceWorker(
            self, BufferSettings(60, 60, buffer_spans=1, buffer_bytes=10_000), has_start_events=True
        )

    def submit(self, spans: list[ReadableSpan], track: Callable[[int, int], Ticket]) -> None:
        ticket: Any = track(len(spans), 1)

        def settle() -> None:
            until(lambda: self.worker._is_overflowing)
            ticket._ticket()

        threading.Thread(target=settle).start()

    def resolve_problem(self, reason: str, message: str) -> None: ...

    def begin_flush(self, timeout_seconds: float) -> None: ...

    def end_flush(self) -> None: ...

    def record_dropped(self, count: int, reason: str) -> None: ...

    def spool_or_drop(self, spans: Sequence[ReadableSpan], reason: str) -> None: ...

    def record_filtered(self, spans: Sequence[ReadableSpan]) -> None: ...

    def wait_until_drained(self, timeout_seconds: float) -> int:
        return 0

    def wait_for_rest_calls(self, timeout_seconds: float) -> bool:
        return True


class Taking(Settling):
    """Settles requests at once."""

    def __init__(self) -> None:
        self.worker = TraceWorker(self, BufferSettings(60, 60, 100, 100_000), has_start_events=False)

    def submit(self, spans: list[ReadableSpan], track: Callable[[int, int], Ticket]) -> None:
        track(len(spans), 1)()


class Encoding(Taking):
    """As many spans end while it encodes as are taken in."""

    def __init__(self, *, sees_starts: bool) -> None:
        self.worker = TraceWorker(self, BufferSettings(60, 60, 100, 10_000_000), has_start_events=sees_starts)
        self.sees_starts, self.taken, self.encoding = sees_starts, 0, False

    def end(self, count: int) -> int:
        found = 0
        for span in finished(*map(str, range(count))):
            if self.sees_starts:
                self.worker.enqueue_start(span.context.trace_id)
            found += self.worker.enqueue(span)
        return found

    def submit(self, spans: list[ReadableSpan], track: Callable[[int, int], Ticket]) -> None:
        if not self.encoding:
            self.encoding = True
            self.taken = self.end(200)
        super().submit(spans, track)


@pytest.mark.parametrize("sees_starts", [True, False])
def test_spans_being_encoded_count_for_limit(sees_starts: bool) -> None:
    sink = Encoding(sees_starts=sees_starts)
    assert sink.end(40) == 40  # less than half of the limit, so that nothing but the flush hands them over
    assert sink.worker.flush(30)
    assert 50 <= sink.taken <= 60
    sink.worker.close(30, lambda _: None)


def test_flush_during_tick_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, results = Taking().worker, list[bool]()
    thread = threading.Thread(target=lambda: results.append(worker.flush(30)))
    tell = worker._log_overflow

    def look() -> None:
        # In a step that has not seen it: its wake-up is taken for an event.
        if not thread.ident:
            thread.start()
            until(lambda: not worker._events.empty())
            worker._events.get_nowait()
        tell()

    monkeypatch.setattr(worker, "_log_overflow", look)
    begin = time.monotonic()
    assert worker.enqueue(*finished("a"))
    until(lambda: thread.ident)
    thread.join()
    assert results == [True]
    assert time.monotonic() - begin < 20  # and not the 30 that it would have waited for
    worker.close(5, lambda _: None)


def test_flush_after_close_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Taking().worker
    assert worker.enqueue(*finished("a"))
    worker.close(30, lambda _: None)
    started: list[None] = []
    monkeypatch.setattr(worker, "_start_thread", lambda: started.append(None))
    begin = time.monotonic()
    assert worker.flush(30)
    assert started == []
    assert time.monotonic() - begin < 20


def test_flush_restores_capacity() -> None:
    worker = Settling().worker
    for _ in range(3):
        assert worker.enqueue(finished("a")[0])
        assert worker.flush(30)
    worker.close(30, lambda _: None)


def test_last_measurement_sets_capacity() -> None:
    class Slow:
        """Requests in flight, of which the first look sees one, and takes a while."""

        bytes = 0

        def __init__(self) -> None:
            self.looks, self.looking, self.go = iter([1]), threading.Event(), threading.Event()

        @property
        def spans(self) -> int:
            found = next(self.looks, 0)
            if found:
                self.looking.set()
                assert self.go.wait(30)
            return found

    worker, slow = Settling().worker, Slow()
    worker._in_flight = slow  # type: ignore[assignment]
    first, second = (threading.Thread(target=worker._update_capacity) for _ in range(2))
    first.start()
    assert slow.looking.wait(30)
    second.start()
    second.join(0.3)  # it is done by then, unless it waits for its turn
    slow.go.set()
    first.join()
    second.join()
    assert worker._capacity == 2


def test_processor_reads_arguments_and_environment(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_HOLD", "7")
    with bench(scripted_server, linger=0.2) as made:
        worker = made.processor._worker
        assert worker is not None
        assert (worker._settings.linger, worker._settings.hold) == (0.2, 7)
        with pytest.raises(ConfigurationError, match="argument buffer_spans= is '0'"):
            MLflowSpanProcessor(made.exporter, buffer_spans=0)
        monkeypatch.setenv("MLFLOW_OTLP_LINGER", "never")
        with pytest.raises(ConfigurationError, match="MLFLOW_OTLP_LINGER is 'never'"):
            MLflowSpanProcessor(made.exporter)
