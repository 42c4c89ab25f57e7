"""The span processor with a real exporter: content and time of requests; the application never waits."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter, MLflowSpanProcessor, trace_context
from mlflow_otlp_exporter._internal.common import process_end
from mlflow_otlp_exporter._internal.config.models import BufferSettings
from mlflow_otlp_exporter._internal.delivery.batcher import Batch
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.processing import worker as worker_module
from mlflow_otlp_exporter._internal.processing.processor import worker_of
from mlflow_otlp_exporter._internal.processing.worker import TraceWorker
from support.children import run_in_fork
from support.markers import SECRET
from support.scripted_server import Answer, ScriptedServer
from support.spans import Prompting, make_spans
from support.traces import wait_until

STALLED = Answer(delay=60)
# Python 3.12 warns of just what is tested here.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Bench:
    """A provider with the processor, and a server that records requests."""

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

    def fill_buffer(self) -> None:
        """End more spans than a buffer of ten takes, while the server has a request with the first ones."""
        for number in range(10):
            self.trace(str(number))
        self.server.wait_for(1)
        for number in range(10, 40):
            self.trace(str(number))


@contextmanager
def running_bench(
    server: ScriptedServer, exporter: MLflowSpanExporter | None = None, **settings: Any
) -> Iterator[Bench]:
    bench = Bench(server, exporter, **settings)
    try:
        yield bench
    finally:
        bench.processor.shutdown(20_000)


def test_complete_trace_is_sent_without_flush(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server) as bench:
        started_at = time.monotonic()
        bench.trace("root", children=3)
        (request,) = scripted_server.wait_for(1)
        assert time.monotonic() - started_at < 20  # an incomplete trace would wait for 45 s
        assert [span.name for span in request.spans()] == ["root/0", "root/1", "root/2", "root"]


def test_trace_in_progress_is_not_split(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server) as bench, bench.tracer.start_as_current_span("long"):
        bench.tracer.start_span("long/child").end()
        bench.tracer.start_span("other", context=Context()).end()
        scripted_server.wait_for(1)
        assert bench.requests() == [["other"]]
    assert bench.requests() == [["other"], ["long/child", "long"]]


def test_small_traces_share_one_request(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server, linger=60) as bench:
        for number in range(20):
            bench.trace(f"trace {number}")
        bench.processor.force_flush()
        assert [len(request) for request in bench.requests()] == [20]


def test_open_trace_is_sent_after_max_age(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server, hold=0.2) as bench, bench.tracer.start_as_current_span("root"):
        bench.tracer.start_span("first").end()
        scripted_server.wait_for(1)
        assert bench.requests() == [["first"]]
    assert bench.requests() == [["first"], ["root"]]


def test_late_child_is_sent_with_its_root(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server) as bench:
        with bench.tracer.start_as_current_span("root"):
            child = bench.tracer.start_span("child")
        child.end()
        scripted_server.wait_for(1)
        assert bench.requests() == [["root", "child"]]


def test_traces_with_remote_parent_or_two_roots_are_sent(scripted_server: ScriptedServer) -> None:
    remote = NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1)))
    with running_bench(scripted_server) as bench:
        one, two = (bench.tracer.start_span(name, context=set_span_in_context(remote)) for name in ("one", "two"))
        one.end()
        two.end()
        scripted_server.wait_for(1)
        assert bench.requests() == [["one", "two"]]


def test_unsampled_spans_are_ignored(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server) as bench:
        quiet = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        quiet.add_span_processor(bench.processor)
        quiet.get_tracer("x").start_span("unsampled").end()
        assert bench.processor.force_flush()
    assert bench.requests() == []


def test_traces_of_50_threads_stay_whole(scripted_server: ScriptedServer) -> None:
    barrier = threading.Barrier(50)

    def agent(number: int) -> None:
        barrier.wait()
        for round_number in range(4):
            bench.trace(f"{number}.{round_number}", children=5)

    with running_bench(scripted_server) as bench:
        threads = [threading.Thread(target=agent, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bench.processor.force_flush()
    assert_traces_are_whole(bench, 200, 6)


def test_traces_of_asyncio_tasks_stay_whole(scripted_server: ScriptedServer) -> None:
    async def agent(number: int) -> None:
        with bench.tracer.start_as_current_span(str(number)):
            for child in range(5):
                await asyncio.sleep(0)
                with bench.tracer.start_as_current_span(f"{number}/{child}"):
                    await asyncio.sleep(0)

    async def all_agents() -> None:
        await asyncio.gather(*(agent(number) for number in range(100)))

    with running_bench(scripted_server) as bench:
        asyncio.run(all_agents())
        assert bench.processor.force_flush()
    assert_traces_are_whole(bench, 100, 6)


def assert_traces_are_whole(bench: Bench, traces: int, spans: int) -> None:
    """Each trace was sent in one request, each span once."""
    trace_ids: set[bytes] = set()
    for request in span_counts_by_trace(bench):
        for trace_id, count in request.items():
            assert trace_id not in trace_ids
            assert count == spans
            trace_ids.add(trace_id)
    assert len(trace_ids) == traces


def span_counts_by_trace(bench: Bench) -> list[dict[bytes, int]]:
    result = []
    for request in bench.server.to("/v1/traces"):
        counts: dict[bytes, int] = {}
        for span in request.spans():
            counts[span.trace_id] = counts.get(span.trace_id, 0) + 1
        result.append(counts)
    return result


def test_requests_have_target_size_and_whole_traces(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", max_request_size=10_000)
    with running_bench(scripted_server, exporter, linger=60) as bench:
        for number in range(10):
            with bench.tracer.start_as_current_span(f"root {number}"):
                bench.tracer.start_span("child", attributes={"text": "x" * 4000}).end()
        assert bench.processor.force_flush()
    assert [len(request) for request in bench.requests()] == [4, 4, 4, 4, 4]
    assert all(len(request.content) <= 10_000 for request in scripted_server.requests)


def test_request_with_run_has_at_most_100_roots(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", run_id="r")
    with running_bench(scripted_server, exporter, linger=0.5) as bench:
        for number in range(250):
            bench.trace(str(number))
        assert bench.processor.force_flush()
    counts = [len(request) for request in bench.requests()]
    assert sum(counts) == 250
    assert max(counts) <= 100


# Limits; slow and unavailable servers


def test_burst_of_5000_spans_to_slow_server_drops_none(scripted_server: ScriptedServer) -> None:
    release = threading.Event()
    scripted_server.answer(Answer(200, delay=3, hold=release))
    with running_bench(scripted_server) as bench:
        for number in range(500):
            bench.trace(str(number), children=9)
        release.set()  # the application did not wait for the server
        assert bench.processor.force_flush(60_000)
    assert len(bench.names()) == len(set(bench.names())) == 5000
    assert bench.exporter.stats().dropped == 0


def test_memory_is_bounded_while_server_is_unavailable(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(STALLED)
    limit = 2_000_000
    with running_bench(scripted_server, timeout=30, buffer_bytes=limit) as bench:
        worker = bench.processor._worker
        assert worker is not None
        max_bytes = 0
        for _ in range(60):
            for _ in range(10):
                bench.tracer.start_span("large", attributes={"text": "x" * 10_000}).end()
            bench.processor.force_flush(1)
            worker._tick()  # as the worker does a tick later
            max_bytes = max(max_bytes, worker._buffer.byte_count + worker._pipeline.in_flight_byte_count)
        # The spans of one tick may exceed the limit before the worker measures.
        assert 0.9 * limit < max_bytes < limit + 300_000
        dropped_count = bench.exporter.stats().dropped
        assert dropped_count > 300
        assert bench.processor._worker is not None
        assert worker.pending_count() + dropped_count == 600
        bench.processor.shutdown(500)
    lines = [line for line in caplog.messages if "the buffer is full" in line]
    assert [line.endswith("more spans] [MLO-701]") for line in lines] == [
        False,
        True,
    ]  # at once, and the remaining spans at the end


def test_full_buffer_recovers_with_server(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SLOW_SECONDS", 60.0)
    release = threading.Event()
    scripted_server.answer(Answer(200, hold=release), then=Answer(200))
    with running_bench(scripted_server, buffer_spans=10) as bench:
        bench.fill_buffer()
        # No request has waited for long.
        wait_until(lambda: "spans end faster than this process can prepare them" in caplog.text)
        release.set()
        bench.processor.force_flush()
        dropped_count = bench.exporter.stats().dropped
        bench.trace("after")
        assert bench.processor.force_flush()
    assert "after" in bench.names()
    assert len(bench.names()) == 41 - dropped_count


def test_full_buffer_during_long_request_names_the_server(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SLOW_SECONDS", 0.0)
    scripted_server.answer(STALLED)
    with running_bench(scripted_server, timeout=30, buffer_spans=10) as bench:
        bench.fill_buffer()
        wait_until(lambda: "the server is unavailable, or slower than the application" in caplog.text)
        scripted_server.close()
        bench.processor.shutdown(500)


def test_flush_keeps_timeout_while_server_stalls(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(STALLED)
    with running_bench(scripted_server, timeout=30) as bench:
        bench.trace("stuck")
        started_at = time.monotonic()
        assert bench.processor.force_flush(300) is False
        assert 0.25 < time.monotonic() - started_at < 20  # less than the timeout of 30 s
        scripted_server.close()
        bench.processor.shutdown(500)


def test_flush_returns_false_if_spans_are_dropped(scripted_server: ScriptedServer) -> None:
    # A single span is dropped after the second rejection.
    scripted_server.answer(Answer(400), Answer(400), then=Answer(200))
    with running_bench(scripted_server) as bench:
        bench.trace("rejected")
        assert bench.processor.force_flush() is False
        bench.trace("accepted")
        assert bench.processor.force_flush() is True


def test_shutdown_keeps_timeout_while_server_stalls(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(STALLED)
    bench = Bench(scripted_server, timeout=30)
    bench.trace("stuck")
    started_at = time.monotonic()
    bench.processor.shutdown(500)
    assert time.monotonic() - started_at < 20
    scripted_server.close()


def test_shutdown_sends_buffered_spans(scripted_server: ScriptedServer) -> None:
    bench = Bench(scripted_server)
    with bench.tracer.start_as_current_span("open"):
        bench.tracer.start_span("ended").end()
        bench.provider.shutdown()
    assert bench.names() == ["ended"]


def test_spans_after_shutdown_are_dropped_and_counted(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(scripted_server)
    bench.processor.shutdown()
    bench.trace("late", children=2)
    assert bench.processor.force_flush() is True
    bench.processor.shutdown()
    assert bench.exporter.stats().dropped == 3
    assert caplog.text.count("ended after shutdown") == 1
    assert bench.requests() == []


def test_unused_processor_starts_no_thread(scripted_server: ScriptedServer) -> None:
    before = set(threading.enumerate())
    with running_bench(scripted_server) as bench:
        assert bench.processor.force_flush()
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
    build, errors = pipeline.batcher.build_and_clear, [error]

    def build_or_raise(spans: list[ReadableSpan], max_span_bytes: float) -> list[Batch]:
        if errors:
            raise errors.pop()
        return build(spans, max_span_bytes)

    monkeypatch.setattr(pipeline.batcher, "build_and_clear", build_or_raise)
    with running_bench(scripted_server, exporter) as bench:
        bench.trace("lost")
        assert bench.processor.force_flush() is False
        assert exporter.stats().dropped == 1
        assert pipeline.in_flight_span_count == pipeline.in_flight_byte_count == 0
        bench.trace("after")
        assert bench.processor.force_flush() is True
    assert bench.names() == ["after"]
    assert type(error).__name__ in caplog.text


def test_failed_submission_releases_what_was_not_handed_over(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url)
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    enqueue, errors = pipeline.work_queue.enqueue, [None, MemoryError()]

    def enqueue_or_raise(*arguments: Any, **options: Any) -> bool:
        if (error := errors.pop(0)) is not None:
            raise error
        return enqueue(*arguments, **options)

    monkeypatch.setattr(pipeline.work_queue, "enqueue", enqueue_or_raise)
    with running_bench(scripted_server, exporter) as bench:
        for experiment_id in ("1", "2"):
            with trace_context(experiment_id=experiment_id):
                bench.trace(f"to {experiment_id}")
        assert bench.processor.force_flush() is False
        assert (exporter.stats().delivered, exporter.stats().dropped) == (1, 1)
    assert bench.names() == ["to 1"]


def test_spans_of_closed_pipeline_that_cannot_be_spooled_count_as_dropped(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    exporter.shutdown()

    def build(_: Sequence[ReadableSpan]) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(pipeline.batcher, "build", build)
    with pytest.raises(MemoryError):
        pipeline.submit(make_spans("a", "b"), 100)
    assert exporter.stats().dropped == 2
    assert pipeline.in_flight_span_count == pipeline.in_flight_byte_count == 0


def test_dead_worker_thread_is_restarted(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server) as bench:
        bench.trace("first")
        assert bench.processor.force_flush()
        worker = bench.processor._worker
        assert worker is not None
        assert worker._thread is not None
        # A thread that has ended, as after a kill by gevent or a failed fork.
        dead = threading.Thread(target=lambda: None)
        dead.start()
        dead.join()
        alive, worker._thread = worker._thread, dead
        worker._is_thread_checked = False
        bench.trace("second")
        assert worker._thread is not dead
        scripted_server.wait_for(2)
        worker._is_stopped = True
        while alive.is_alive():
            worker._wake()  # either thread may take it
            alive.join(0.1)
    assert bench.names() == ["first", "second"]


def test_span_that_cannot_be_encoded_does_not_affect_others(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with running_bench(scripted_server) as bench:
        with bench.tracer.start_as_current_span("root") as root:
            bad = bench.tracer.start_span("bad")
            bad._kind = "no kind"  # type: ignore[attr-defined]
            bad.end()
            assert root.is_recording()
        assert bench.processor.force_flush() is False
        assert (bench.exporter.stats().delivered, bench.exporter.stats().dropped) == (1, 1)
    assert bench.names() == ["root"]
    assert "could not be encoded (AttributeError)" in caplog.text


@FORKS
def test_fork_with_spans_in_flight_sends_each_span_once(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(200, delay=0.3), then=Answer(200))
    with running_bench(scripted_server) as bench:
        bench.trace("parent, being sent")
        scripted_server.wait_for(1)
        bench.trace("parent, not submitted")
        open_span = bench.tracer.start_span("parent, open")

        def child() -> bool:
            bench.trace("child")
            return bench.processor.force_flush() and bench.exporter.stats().delivered == 1

        assert run_in_fork(child)
        open_span.end()
        bench.trace("parent, after")
        assert bench.processor.force_flush()
    assert sorted(bench.names()) == [
        "child",
        "parent, after",
        "parent, being sent",
        "parent, not submitted",
        "parent, open",
    ]


@FORKS
def test_fork_while_other_threads_hold_locks_does_not_deadlock(scripted_server: ScriptedServer) -> None:
    def child() -> bool:
        bench.trace("child")
        return bench.processor.force_flush(50_000)

    with running_bench(scripted_server) as bench:
        bench.trace("warm")
        bench.processor.force_flush()
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                bench.trace("busy", children=3)
                bench.processor.force_flush(1)

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert run_in_fork(child)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert bench.names().count("child") == 10


def test_span_end_in_signal_handler_or_finalizer_never_blocks(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server, buffer_spans=50) as bench:
        previous = signal.signal(signal.SIGALRM, lambda *_: bench.trace("in the handler"))
        try:
            for _ in range(200):
                # One signal each: handlers that interrupt each other on a slow machine would nest without end.
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                for _ in range(20):
                    bench.trace("outside")  # the buffer is full now and then
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        bench.processor.force_flush()
        assert "in the handler" in bench.names()


def test_span_that_ends_during_shutdown_is_delivered_or_counted(scripted_server: ScriptedServer) -> None:
    bench, stop, ended = Bench(scripted_server), threading.Event(), [0, 0]

    def agent(number: int) -> None:
        while not stop.is_set() and ended[number] < 10_000:  # so that shutdown can settle all
            bench.trace("span")
            ended[number] += 1

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    scripted_server.wait_for(1)
    bench.processor.shutdown(60_000)
    stop.set()
    for thread in threads:
        thread.join()
    stats = bench.exporter.stats()
    assert stats.delivered + stats.dropped == sum(ended)
    assert stats.delivered == len(bench.names())


def test_enqueue_that_outlasts_shutdown_counts_the_span_as_dropped(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, resume = threading.Event(), threading.Event()

    def hold(_: ReadableSpan) -> None:
        recording.set()
        assert resume.wait(30)

    monkeypatch.setattr(Pipeline, "span_recorder", staticmethod(hold))
    bench = Bench(scripted_server)
    agent = threading.Thread(target=bench.trace, args=("span",))
    agent.start()
    assert recording.wait(30)
    bench.processor.shutdown()
    resume.set()
    agent.join()
    assert (bench.exporter.stats().delivered, bench.exporter.stats().dropped) == (0, 1)


def _has_name(bench: Bench, name: str) -> bool:
    return name in bench.names()


def test_batch_interval_of_client_delays_next_batch(scripted_server: ScriptedServer) -> None:
    with running_bench(scripted_server, linger=0.001) as bench:
        pipeline = pipeline_of(bench.exporter)
        assert pipeline is not None
        for name, interval in (("first", 0.0), ("second", 0.8)):
            pipeline.otlp_client.batch_interval_seconds = interval
            bench.trace(name)
            began_at = time.monotonic()
            wait_until(partial(_has_name, bench, name))
        assert time.monotonic() - began_at > 0.4


class SettlingPipeline(Pipeline):
    """Settles requests of a full buffer when the flush waits for them."""

    span_recorder = persistent_queue = None
    dropped_count = in_flight_span_count = in_flight_byte_count = 0
    otlp_client: Any = SimpleNamespace(batch_interval_seconds=0.0)

    def __init__(self) -> None:
        self.worker = TraceWorker(
            self, BufferSettings(60, 60, buffer_spans=1, buffer_bytes=10_000), has_start_events=True
        )

    def submit(self, spans: list[ReadableSpan], byte_count: int = 0, max_span_bytes: float = 0.0) -> None:
        self.in_flight_span_count, self.in_flight_byte_count = len(spans), byte_count

    def flush(self, timeout_seconds: float) -> bool:
        self.in_flight_span_count = self.in_flight_byte_count = 0
        return True

    def resolve_problem(self, reason: str, message: str) -> None: ...

    def record_dropped(self, count: int, reason: str, kind: str) -> None: ...

    def spool_or_drop(self, spans: Sequence[ReadableSpan], reason: str) -> None: ...

    def record_filtered(self, spans: Sequence[ReadableSpan]) -> None: ...


class AcceptingPipeline(SettlingPipeline):
    """Settles requests at once."""

    def __init__(self) -> None:
        self.worker = TraceWorker(self, BufferSettings(60, 60, 100, 100_000), has_start_events=False)

    def submit(self, spans: list[ReadableSpan], byte_count: int = 0, max_span_bytes: float = 0.0) -> None: ...


class EncodingPipeline(AcceptingPipeline):
    """200 spans end while the first batch is encoded."""

    def __init__(self, *, has_start_events: bool) -> None:
        self.worker = TraceWorker(self, BufferSettings(60, 60, 100, 10_000_000), has_start_events=has_start_events)
        self.has_start_events, self.accepted_count, self.is_encoding = has_start_events, 0, False

    def end(self, count: int) -> int:
        accepted_count = 0
        spans: list[Any] = make_spans(*map(str, range(count)))
        for span in spans:
            if self.has_start_events:
                self.worker.enqueue_start(span)
            accepted_count += self.worker.enqueue(span)
        return accepted_count

    def submit(self, spans: list[ReadableSpan], byte_count: int = 0, max_span_bytes: float = 0.0) -> None:
        if not self.is_encoding:
            self.is_encoding = True
            self.in_flight_span_count, self.in_flight_byte_count = len(spans), byte_count
            self.accepted_count = self.end(200)
            self.in_flight_span_count = self.in_flight_byte_count = 0


@pytest.mark.parametrize("has_start_events", [True, False])
def test_spans_being_encoded_count_for_limit(has_start_events: bool) -> None:
    pipeline = EncodingPipeline(has_start_events=has_start_events)
    assert pipeline.end(40) == 40  # less than half of the limit, so that only the flush submits them
    assert pipeline.worker.flush(30)
    assert 50 <= pipeline.accepted_count <= 60
    pipeline.worker.close(30, lambda _: None)


def test_flush_during_tick_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, results = AcceptingPipeline().worker, list[bool]()
    thread = threading.Thread(target=lambda: results.append(worker.flush(30)))
    measure_capacity = worker._measure_capacity

    def start_flush() -> int:
        # During a tick that began before the flush.
        if not thread.ident:
            thread.start()
            wait_until(lambda: worker._wake_up._is_set)
        return measure_capacity()

    monkeypatch.setattr(worker, "_measure_capacity", start_flush)
    started_at = time.monotonic()
    assert worker.enqueue(*make_spans("a"))
    wait_until(lambda: thread.ident)
    thread.join()
    assert results == [True]
    assert time.monotonic() - started_at < 20  # less than the timeout of 30 s
    worker.close(5, lambda _: None)


def test_signal_ends_open_spans_and_references_to_ended_ones_do_not_accumulate() -> None:
    worker = AcceptingPipeline().worker
    tracer: Any = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    parent = tracer.start_span("parent")
    child = tracer.start_span("child", context=set_span_in_context(parent))
    for span in (parent, child):
        worker.enqueue_start(span)
    ended_spans = []  # which the application keeps
    for _ in range(20):
        for _ in range(100):
            ended_spans.append(tracer.start_span("ended"))
            worker.enqueue_start(ended_spans[-1])
            ended_spans[-1].end()
        worker._tick()
        assert len(worker._open_spans) <= 504
    worker.enqueue_start(last := tracer.start_span("not seen by the worker"))
    worker.end_open_spans()
    assert last.end_time < child.end_time < parent.end_time
    assert {span.status.status_code for span in ended_spans} == {StatusCode.UNSET}


def test_flush_after_close_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = AcceptingPipeline().worker
    assert worker.enqueue(*make_spans("a"))
    worker.close(30, lambda _: None)
    started: list[None] = []
    monkeypatch.setattr(worker, "_start_thread", lambda: started.append(None))
    started_at = time.monotonic()
    assert worker.flush(30)
    assert started == []
    assert time.monotonic() - started_at < 20


def test_flush_restores_capacity() -> None:
    worker = SettlingPipeline().worker
    for _ in range(3):
        assert worker.enqueue(make_spans("a")[0])
        assert worker.flush(30)
    worker.close(30, lambda _: None)


def test_processor_reads_arguments_and_environment(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_HOLD", "7")
    with running_bench(scripted_server, linger=0.2) as bench:
        worker = bench.processor._worker
        assert worker is not None
        assert (worker._settings.linger, worker._settings.hold) == (0.2, 7)
        with pytest.raises(ConfigurationError, match="argument buffer_spans= is '0'"):
            MLflowSpanProcessor(bench.exporter, buffer_spans=0)
        monkeypatch.setenv("MLFLOW_OTLP_LINGER", "never")
        with pytest.raises(ConfigurationError, match="MLFLOW_OTLP_LINGER is 'never'"):
            MLflowSpanProcessor(bench.exporter)


def test_close_interrupted_while_another_thread_closes_waits_for_it(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    scripted_server.answer(Answer(hold=release))
    bench = Bench(scripted_server)
    bench.trace("a")
    scripted_server.wait_for(1)
    worker = worker_of(bench.processor)
    assert worker is not None
    thread = threading.Thread(target=bench.processor.shutdown, args=(60_000,))
    thread.start()
    wait_until(lambda: worker.is_closed)

    waits: list[float] = []

    def interrupt(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            raise KeyboardInterrupt
        release.set()
        thread.join()

    monkeypatch.setattr(worker, "_wait_until_closed", interrupt)
    monkeypatch.setattr(process_end, "is_ending", lambda: True)
    bench.processor.shutdown()
    assert not thread.is_alive()
    assert bench.exporter.stats().delivered == 1
