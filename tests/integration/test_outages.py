"""Outages with a spool: spans that a server does not accept are on disk, and are sent later by this or another run."""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import FlushResult, MLflowSpanExporter, MLflowSpanProcessor, configure, shutdown
from mlflow_otlp_exporter._internal.delivery import spool_consumer
from mlflow_otlp_exporter._internal.processing.processor import worker_of
from mlflow_otlp_exporter._internal.setup.telemetry import Telemetry
from mlflow_otlp_exporter._internal.spool import file_format
from support.children import run_in_fork
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import make_traces, wait_until

DOWN = Answer(503, body=b"down")
VERSION = b"3.17.2"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_consumer, "_MAINTENANCE_SECONDS", 0.5)
    monkeypatch.setattr(spool_consumer, "_IDLE_SECONDS", 0.2)


@pytest.fixture
def server(scripted_server: ScriptedServer) -> ScriptedServer:
    scripted_server.answer_with("/version", lambda _: Answer(200, body=VERSION))
    return scripted_server


def make_exporter(server: ScriptedServer, **more: Any) -> MLflowSpanExporter:
    return MLflowSpanExporter(**{"tracking_uri": server.url, "experiment_id": 1, "spool": True, "timeout": 20, **more})


class App:
    """A pipeline like that of `configure()`, with a long time-out of requests."""

    def __init__(self, server: ScriptedServer, **more: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.exporter = make_exporter(server, **more)
        processor = MLflowSpanProcessor(self.exporter, linger=0.01)
        self.provider.add_span_processor(processor)
        self.telemetry = Telemetry(self.provider, self.exporter, processor, worker_of(processor))

    def end(self, *names: str) -> None:
        for name in names:
            self.provider.get_tracer("tests").start_span(name).end()

    def flush(self, timeout_seconds: float = 30.0) -> FlushResult:
        return self.telemetry.flush(timeout_seconds)


@pytest.fixture
def app(server: ScriptedServer) -> Iterator[App]:
    running_app = App(server)
    yield running_app
    running_app.telemetry.shutdown(1)


def spooled_files() -> list[Path]:
    root = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter")
    return sorted(root.glob("*/*.otlp"))


def wait_for_spooled_files(count: int) -> None:
    wait_until(lambda: len(spooled_files()) >= count)


class SwitchableServer:
    """A server that accepts spans unless `down` is set, and records accepted and received spans."""

    def __init__(self, server: ScriptedServer) -> None:
        self.down: Answer | None = None
        self.accepted: Counter[str] = Counter()
        self.order: list[str] = []
        self.received: list[str] = []
        self._lock = threading.Lock()
        server.answer_with(TRACES_PATH, self)

    def __call__(self, request: RecordedRequest) -> Answer:
        with self._lock:
            names = [span.name for span in request.spans()]
            self.received += names
            if self.down is not None:
                return self.down
            self.accepted.update(names)
            self.order += names
            return ACCEPTED


@pytest.fixture
def switch(server: ScriptedServer) -> SwitchableServer:
    return SwitchableServer(server)


def test_outage_with_spool_keeps_spans_on_disk(app: App, switch: SwitchableServer) -> None:
    switch.down = DOWN
    app.end("a", "b")
    result = app.flush()
    assert (result.delivered, result.spooled, result.dropped, result.pending) == (0, 2, 0, 0)
    assert result
    assert app.telemetry.stats().spooled == 2
    assert len(spooled_files()) == 1
    switch.down = None
    app.end("c")
    result = app.flush()
    assert (result.delivered, result.spooled) == (3, 0)
    assert switch.accepted == {"a": 1, "b": 1, "c": 1}
    assert spooled_files() == []


@pytest.mark.parametrize("spool", [False, True])
def test_flush_during_an_attempt_ignores_its_retry_after(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, *, spool: bool
) -> None:
    flushing = threading.Event()
    server.answer(Answer(503, headers={"Retry-After": "900"}, hold=flushing), then=ACCEPTED)
    app = App(server, spool=spool, timeout=60)
    app.end("a")
    server.wait_for(1)
    pipeline = app.exporter._pipeline
    assert pipeline is not None
    wake_all = pipeline.work_queue.wake_all

    def wake_and_release() -> None:
        wake_all()
        flushing.set()

    monkeypatch.setattr(pipeline.work_queue, "wake_all", wake_and_release)
    assert app.flush(60) == FlushResult(delivered=1)
    assert len(server.to(TRACES_PATH)) == 2
    app.telemetry.shutdown(1)


def test_spooled_spans_are_sent_without_flush(app: App, switch: SwitchableServer) -> None:
    switch.down = DOWN
    app.end("a")
    wait_until(spooled_files)
    switch.down = None
    wait_until(lambda: switch.accepted == {"a": 1})
    wait_until(lambda: not spooled_files())
    assert app.flush() == FlushResult(delivered=1)


def test_next_run_sends_spooled_spans(server: ScriptedServer, switch: SwitchableServer) -> None:
    switch.down = DOWN
    first = App(server)
    first.end("a", "b")
    assert first.telemetry.shutdown() == FlushResult(spooled=2)
    switch.down = None
    second = App(server)
    wait_until(lambda: switch.accepted == {"a": 1, "b": 1})
    wait_until(lambda: not spooled_files())
    assert second.telemetry.shutdown() == FlushResult(delivered=2)


def test_rejected_spans_of_an_earlier_run_are_logged_as_such(
    server: ScriptedServer, switch: SwitchableServer, caplog: pytest.LogCaptureFixture
) -> None:
    switch.down = DOWN
    first = App(server)
    first.end("yesterday")
    assert first.telemetry.shutdown() == FlushResult(spooled=1)
    switch.down = Answer(422, body=b"no")
    caplog.clear()
    second = App(server)
    wait_until(lambda: not spooled_files())
    second.end("today")
    assert second.telemetry.shutdown().dropped == 2
    lines = {line.split(":")[0].split(" of trace ")[0]: line for line in caplog.messages if "Dropped " in line}
    assert sorted(lines) == ["Dropped span 'today'", "Dropped span 'yesterday'"]
    assert " (left by an earlier run): " in lines["Dropped span 'yesterday'"]
    assert re.match(r"Dropped span 'today' of trace tr-\w+: ", lines["Dropped span 'today'"])


def test_spool_consumer_starts_with_a_complete_pipeline(
    server: ScriptedServer, switch: SwitchableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may run before the constructor of the pipeline continues."""
    switch.down = DOWN
    first = App(server)
    first.end("a")
    assert first.telemetry.shutdown() == FlushResult(spooled=1)
    snapshots: list[tuple[Any, set[str]]] = []

    def wake(consumer: Any) -> None:
        pipeline = consumer._send.__self__
        snapshots.append((pipeline, set(vars(pipeline))))

    with monkeypatch.context() as patch:
        patch.setattr(spool_consumer.SpoolConsumer, "wake", wake)
        second = make_exporter(server)
        pipeline, attributes = snapshots[0]
        assert attributes == set(vars(pipeline))
        second.shutdown(1000)


def test_spans_during_a_known_outage_go_to_disk_at_once(app: App, switch: SwitchableServer) -> None:
    switch.down = DOWN
    app.end("a")
    wait_until(spooled_files)
    begin, before = time.monotonic(), len(switch.received)
    for number in range(3):
        app.end(f"more {number}")
        wait_for_spooled_files(number + 2)
    received, seconds = Counter(switch.received[before:]), time.monotonic() - begin
    assert received.pop("a", 0) <= 3 + math.log2(2 + seconds)  # attempts of the oldest request, with growing delays
    assert set(received.values()) <= {1}  # spans that ended when the next attempt was due
    wait_until(lambda: app.telemetry.stats().spooled == 4)


def test_spool_consumer_sends_oldest_requests_first(app: App, switch: SwitchableServer) -> None:
    switch.down = DOWN
    names = [str(number) for number in range(6)]
    for number, name in enumerate(names):
        app.end(name)
        app.flush(0.5)
        wait_for_spooled_files(number + 1)
    switch.down = None
    wait_until(lambda: not spooled_files())
    assert switch.order == names


def test_hanging_server_gets_at_most_two_requests_before_spooling(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(then=Answer(200, hold=release))
    app = App(server, timeout=0.5)
    app.provider.get_tracer("tests").start_span("a").end()
    try:
        wait_until(spooled_files)
        [path] = spooled_files()
        stored = int(path.name.split("-")[0]) / 1e9 - (time.time() - time.monotonic())
        assert len([request for request in server.to(TRACES_PATH) if request.at < stored]) <= 2
    finally:
        release.set()
        app.telemetry.shutdown(1)


def test_spans_behind_a_slow_request_go_to_disk(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(Answer(200, hold=release), then=ACCEPTED)
    app = App(server, timeout=30)
    try:
        app.end("slow")
        server.wait_for(1)
        app.end("behind")
        wait_until(spooled_files)
        wait_until(lambda: app.telemetry.stats().spooled == 1)
    finally:
        release.set()
        assert app.telemetry.shutdown()
    assert app.telemetry.stats().delivered == 2
    assert spooled_files() == []


def test_shutdown_during_a_request_spools_its_spans(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(then=Answer(200, hold=release))
    app = App(server, timeout=30)
    try:
        app.end("a")
        server.wait_for(1)
        begin = time.monotonic()
        result = app.telemetry.shutdown(0.5)
        assert time.monotonic() - begin < 15  # the time-out of the request is 30 s
        assert result.dropped == 0
        assert sum(int(path.name.split("-")[1]) for path in spooled_files()) == 1
    finally:
        release.set()


def test_export_returns_success_for_spooled_spans(server: ScriptedServer, switch: SwitchableServer) -> None:
    switch.down = DOWN
    exporter = make_exporter(server)
    try:
        assert exporter.export(make_spans("a", "b")) is SpanExportResult.SUCCESS
        assert len(spooled_files()) == 1
        assert exporter.export(make_spans("c")) is SpanExportResult.SUCCESS
        assert switch.received.count("c") <= 1  # once if the next attempt was due, mostly not at all
        assert exporter.force_flush()
        switch.down = None
        assert exporter.force_flush()
        assert switch.accepted == {"a": 1, "b": 1, "c": 1}
    finally:
        exporter.shutdown(1000)


def test_exporter_without_spool_setting_writes_nothing(server: ScriptedServer, switch: SwitchableServer) -> None:
    switch.down = DOWN
    exporter = MLflowSpanExporter(tracking_uri=server.url, experiment_id=1, timeout=0.5)
    assert exporter.export(make_spans("a")) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert spooled_files() == []
    assert exporter.stats().dropped == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "spooled"),
    [
        ({}, {}, True),
        ({"spool": False}, {}, False),
        ({}, {"MLFLOW_OTLP_SPOOL": "false"}, False),
        ({"spool": True}, {"MLFLOW_OTLP_SPOOL": "false"}, True),
    ],
)
def test_configure_uses_the_spool_by_default(
    server: ScriptedServer,
    switch: SwitchableServer,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    variables: dict[str, str],
    spooled: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    switch.down = DOWN
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = configure(tracking_uri=server.url, experiment_id=1, tracer_provider=provider, **arguments)
    provider.get_tracer("tests").start_span("a").end()
    result = telemetry.shutdown()
    provider.shutdown()
    assert (result.spooled, result.dropped) == ((1, 0) if spooled else (0, 1))
    assert len(spooled_files()) == spooled
    assert Path(os.environ["XDG_STATE_HOME"]).exists() is spooled


@pytest.mark.parametrize(("spool", "spooled"), [(None, False), ("true", True)])
def test_configure_with_otlp_endpoint_spools_only_on_request(
    server: ScriptedServer, switch: SwitchableServer, monkeypatch: pytest.MonkeyPatch, spool: str | None, spooled: bool
) -> None:
    """A Collector may have its own queue, and other receivers."""
    if spool:
        monkeypatch.setenv("MLFLOW_OTLP_SPOOL", spool)
    switch.down = DOWN
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.traces_url)
    telemetry = configure(experiment_id=1, tracer_provider=provider)
    provider.get_tracer("tests").start_span("a").end()
    assert telemetry.shutdown().spooled == spooled
    provider.shutdown()
    assert len(spooled_files()) == spooled


def test_spans_for_an_unknown_experiment_are_spooled_by_its_name(server: ScriptedServer) -> None:
    server.close()
    first = App(server, experiment_id=None, experiment="later", create_experiment=True)
    first.end("a")
    assert first.telemetry.shutdown().spooled == 1


def test_rejected_request_becomes_a_dead_letter_with_the_servers_message(app: App, server: ScriptedServer) -> None:
    server.answer(then=Answer(400, headers={"Content-Type": "application/json"}, body=b'{"detail": "no such thing"}'))
    app.end("bad")
    assert app.flush().dropped == 1
    [path] = Path(os.environ["XDG_STATE_HOME"]).glob("*/*/refused/*.otlp")
    assert b"no such thing" in path.read_bytes()
    assert spooled_files() == []


def test_spooled_request_that_fails_does_not_block_others(server: ScriptedServer) -> None:
    def answer(request: RecordedRequest) -> Answer:
        names = [span.name for span in request.spans()]
        if down:
            return DOWN
        if "failing" in names:
            return Answer(500, body=b"Internal Server Error")
        accepted.update(names)
        return ACCEPTED

    down, accepted = [True], Counter[str]()
    server.answer_with(TRACES_PATH, answer)
    app = App(server)
    app.end("failing")
    wait_for_spooled_files(1)
    for number in range(5):
        app.end(str(number))
        app.flush(0.2)
    down.clear()
    wait_until(lambda: accepted == Counter(map(str, range(5))), 60)
    app.telemetry.shutdown(1)
    assert sum(int(path.name.split("-")[1]) for path in spooled_files()) <= 1


def test_missing_destination_does_not_block_others(server: ScriptedServer) -> None:
    def answer(request: RecordedRequest) -> Answer:
        if down or request.headers["x-mlflow-experiment-id"] == "404":
            return DOWN
        accepted.append(request.headers["x-mlflow-experiment-id"])
        return ACCEPTED

    down, accepted = [True], list[str]()
    server.answer_with(TRACES_PATH, answer)
    for number in (404, 1):
        exporter = make_exporter(server, experiment_id=number)
        assert exporter.export(make_spans("a")) is SpanExportResult.SUCCESS
        exporter.shutdown(100)
    assert len(spooled_files()) == 2
    down.clear()
    app = App(server)
    wait_until(lambda: accepted == ["1"])
    wait_until(lambda: len(spooled_files()) == 1)
    app.telemetry.shutdown(1)


def test_damaged_files_do_not_block_others(server: ScriptedServer, switch: SwitchableServer) -> None:
    switch.down = DOWN
    first = App(server)
    for number, name in enumerate("abc"):
        first.end(name)
        wait_for_spooled_files(number + 1)
    first.telemetry.shutdown()
    assert len(spooled_files()) == 3
    spooled_files()[1].write_bytes(b"damaged")
    switch.down = None
    second = App(server)
    wait_until(lambda: not spooled_files())
    assert switch.accepted == {"a": 1, "c": 1}
    assert second.telemetry.shutdown().dropped == 1


def test_unusable_spool_folder_keeps_spans_in_memory(
    server: ScriptedServer, switch: SwitchableServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    switch.down = DOWN
    app = App(server, spool_dir=tmp_path / "file" / "spool")
    app.end("a")
    wait_until(lambda: "cannot be used" in caplog.text)
    assert app.flush(1).pending
    switch.down = None
    assert app.flush() == FlushResult(delivered=1)
    app.telemetry.shutdown(1)
    [line] = [line for line in caplog.messages if "cannot be used" in line]
    assert "more spans" not in line


def test_forked_child_does_not_consume_the_parents_spool(app: App, switch: SwitchableServer) -> None:
    switch.down = DOWN
    app.end("parent")
    wait_for_spooled_files(1)

    def child() -> bool:
        app.end("child")
        result = app.flush()
        app.telemetry.shutdown(1)
        return result.spooled == 1

    assert run_in_fork(child)
    assert len(spooled_files()) == 2
    switch.down = None
    assert app.flush().delivered  # a flush does not wait for the spans of other processes
    wait_until(lambda: switch.accepted == {"parent": 1, "child": 1})


def test_one_process_consumes_the_spool_and_another_takes_over(
    server: ScriptedServer, switch: SwitchableServer
) -> None:
    switch.down = DOWN
    first, second = App(server), App(server)
    for number in range(4):
        first.end(str(number))
        wait_for_spooled_files(number + 1)
    consumers = [app.exporter._pipeline.spool_consumer for app in (first, second)]  # type: ignore[union-attr]
    wait_until(lambda: any(consumer is not None and consumer.is_leader for consumer in consumers))
    assert sum(consumer is not None and consumer.is_leader for consumer in consumers) == 1
    leader, other = (first, second) if consumers[0] and consumers[0].is_leader else (second, first)
    leader.telemetry.shutdown(0.5)
    switch.down = None
    other.end("last")
    wait_until(lambda: len(switch.accepted) == 5)
    wait_until(lambda: not spooled_files())
    assert set(switch.accepted.values()) == {1}
    other.telemetry.shutdown(1)


def test_blocked_spool_consumer_releases_the_lock_after_shutdown(
    app: App, switch: SwitchableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch.down = DOWN
    app.end("a")
    wait_for_spooled_files(1)
    pipeline = app.exporter._pipeline
    assert pipeline is not None
    assert pipeline.persistent_queue is not None
    consumer, storage = pipeline.spool_consumer, pipeline.persistent_queue.storage
    assert consumer is not None
    find_folder, is_blocked, release = storage.find_folder, threading.Event(), threading.Event()

    def block() -> Path | None:
        is_blocked.set()
        assert release.wait(60)
        return find_folder()

    monkeypatch.setattr(storage, "find_folder", block)
    consumer.wake()
    assert is_blocked.wait(30)
    app.telemetry.shutdown(1)
    release.set()
    assert consumer._thread is not None
    consumer._thread.join(30)
    assert not consumer.is_leader


EXPORT_AND_WAIT = """
import os, signal, threading
from mlflow_otlp_exporter import MLflowSpanExporter
from support.spans import make_spans
exporter = MLflowSpanExporter(experiment_id=1, spool=True, timeout=2)
print(exporter.export(make_spans("a")), flush=True)
threading.Event().wait(60)
"""


def test_kill_during_a_send_marks_that_the_request_may_have_arrived(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(DOWN, DOWN, then=Answer(200, hold=release))
    child = subprocess.Popen(
        [sys.executable, "-c", EXPORT_AND_WAIT],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.url, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        server.wait_for(3, timeout=60)  # the third comes from the spool, and hangs
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        release.set()
    [path] = spooled_files()
    _, state = file_format.read_header(path.read_bytes())
    assert state.may_have_arrived
    assert state.attempts >= 1


def test_large_spool_does_not_starve_new_spans(server: ScriptedServer, switch: SwitchableServer) -> None:
    switch.down = DOWN
    first = make_exporter(server)
    for span in make_traces(60):
        assert first.export([span]) is SpanExportResult.SUCCESS
    first.shutdown(100)
    assert len(spooled_files()) == 60
    switch.down = None
    permits = threading.Semaphore(6)

    def answer(request: RecordedRequest) -> Answer:
        assert permits.acquire(timeout=60)
        accepted.extend(span.name for span in request.spans())
        return ACCEPTED

    accepted: list[str] = []
    server.answer_with(TRACES_PATH, answer)
    app = App(server, timeout=60)
    wait_until(lambda: len(accepted) == 6)
    app.end("new")
    pipeline = app.exporter._pipeline
    assert pipeline is not None
    wait_until(
        lambda: any(not request.future.is_on_disk for request in pipeline.work_queue.all_items()),
        what="new is queued",
    )
    permits.release(100)
    wait_until(lambda: not spooled_files())
    assert Counter(accepted) == Counter([f"root {number}" for number in range(60)] + ["new"])
    assert accepted.index("new") < 12
    app.telemetry.shutdown(1)


def test_error_after_delivery_does_not_send_again(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    exporter = make_exporter(server)
    pipeline = exporter._pipeline
    assert pipeline is not None
    errors = [ZeroDivisionError()]

    def raise_once(*_: object) -> None:
        if errors:
            raise errors.pop()

    pipeline.retry_sender.on_delivered = raise_once
    pipeline.submit(make_spans("once"), 0)
    wait_until(lambda: "Internal error: could not send" in caplog.text)
    exporter.export(make_spans("later"))
    wait_until(lambda: exporter.stats().delivered == 2)
    exporter.shutdown(5_000)
    assert exporter.stats().spooled == 0
    sent = [span.name for request in server.to(TRACES_PATH) for span in request.spans()]
    assert sent == ["once", "later"]


def test_feedback_of_another_run_is_sent_without_other_data(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    path = f"/api/3.0/mlflow/traces/tr-{trace_id}/assessments"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    server.answer(path=path, then=DOWN)
    first = configure(auto_instrument=False)
    first.log_feedback(trace_id, "helpful", True)
    shutdown(0.5)
    assert list(Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/feedback/*.json"))
    server.answer(path=path, then=Answer(200, headers={"Content-Type": "application/json"}, body=b"{}"))
    second = configure(auto_instrument=False)
    wait_until(lambda: second.stats().feedback == 1)
    shutdown()
    assert not list(Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/feedback/*.json"))
