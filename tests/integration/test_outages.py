"""Outages with a spool: what a server does not take is on disk, and arrives when it does, in this run or another."""

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

from mlflow_otlp_exporter import FlushResult, MLflowSpanExporter, MLflowSpanProcessor, configure
from mlflow_otlp_exporter._internal.delivery import spool_consumer
from mlflow_otlp_exporter._internal.processing.processor import worker_of
from mlflow_otlp_exporter._internal.setup.telemetry import Telemetry
from mlflow_otlp_exporter._internal.spool import file_format
from support.children import run_in_fork
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import make_traces, wait_until

DOWN = Answer(503, body=b"down")
NEW = b"3.17.2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_consumer, "_MAINTENANCE_SECONDS", 0.5)
    monkeypatch.setattr(spool_consumer, "_IDLE_SECONDS", 0.2)


@pytest.fixture
def server(scripted_server: ScriptedServer) -> ScriptedServer:
    scripted_server.answer_with("/version", lambda _: Answer(200, body=NEW))
    return scripted_server


def exporter(server: ScriptedServer, **more: Any) -> MLflowSpanExporter:
    return MLflowSpanExporter(**{"tracking_uri": server.url, "experiment_id": 1, "spool": True, "timeout": 20, **more})


class App:
    """A pipeline as `configure()` makes it; its requests are cut off late, as tests tell what the server does."""

    def __init__(self, server: ScriptedServer, **more: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.exporter = exporter(server, **more)
        processor = MLflowSpanProcessor(self.exporter, linger=0.01)
        self.provider.add_span_processor(processor)
        self.telemetry = Telemetry(self.provider, self.exporter, processor, worker_of(processor))

    def end(self, *names: str) -> None:
        for name in names:
            self.provider.get_tracer("tests").start_span(name).end()

    def flush(self, seconds: float = 30.0) -> FlushResult:
        return self.telemetry.flush(seconds)


@pytest.fixture
def app(server: ScriptedServer) -> Iterator[App]:
    made = App(server)
    yield made
    made.telemetry.shutdown(1)


def on_disk() -> list[Path]:
    root = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter")
    return sorted(root.glob("*/*.otlp"))


def until_on_disk(count: int) -> None:
    wait_until(lambda: len(on_disk()) >= count)


class Switch:
    """Takes what it is told to take, and remembers it, as well as what it was asked to take."""

    def __init__(self, server: ScriptedServer) -> None:
        self.down: Answer | None = None
        self.taken: Counter[str] = Counter()
        self.order: list[str] = []
        self.asked: list[str] = []
        self._lock = threading.Lock()
        server.answer_with(TRACES_PATH, self)

    def __call__(self, request: RecordedRequest) -> Answer:
        with self._lock:
            names = [span.name for span in request.spans()]
            self.asked += names
            if self.down is not None:
                return self.down
            self.taken.update(names)
            self.order += names
            return ACCEPTED


@pytest.fixture
def switch(server: ScriptedServer) -> Switch:
    return Switch(server)


def test_outage_with_spool_keeps_spans_on_disk(app: App, switch: Switch) -> None:
    switch.down = DOWN
    app.end("a", "b")
    result = app.flush()
    assert (result.delivered, result.spooled, result.dropped, result.pending) == (0, 2, 0, 0)
    assert result
    assert app.telemetry.stats().spooled == 2
    assert len(on_disk()) == 1
    switch.down = None
    app.end("c")
    result = app.flush()
    assert (result.delivered, result.spooled) == (3, 0)
    assert switch.taken == {"a": 1, "b": 1, "c": 1}
    assert on_disk() == []


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
    begin_flush = pipeline.begin_flush

    def flush_began(timeout_seconds: float) -> None:
        begin_flush(timeout_seconds)
        flushing.set()

    monkeypatch.setattr(pipeline, "begin_flush", flush_began)
    assert app.flush(60) == FlushResult(delivered=1)
    assert len(server.to(TRACES_PATH)) == 2
    app.telemetry.shutdown(1)


def test_spooled_spans_are_sent_without_flush(app: App, switch: Switch) -> None:
    switch.down = DOWN
    app.end("a")
    wait_until(on_disk)
    switch.down = None
    wait_until(lambda: switch.taken == {"a": 1})
    wait_until(lambda: not on_disk())
    assert app.flush() == FlushResult(delivered=1)


def test_next_run_sends_spooled_spans(server: ScriptedServer, switch: Switch) -> None:
    switch.down = DOWN
    first = App(server)
    first.end("a", "b")
    assert first.telemetry.shutdown() == FlushResult(spooled=2)
    switch.down = None
    second = App(server)
    wait_until(lambda: switch.taken == {"a": 1, "b": 1})
    wait_until(lambda: not on_disk())
    assert second.telemetry.shutdown() == FlushResult(delivered=2)


def test_rejected_spans_of_an_earlier_run_are_logged_as_such(
    server: ScriptedServer, switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    switch.down = DOWN
    first = App(server)
    first.end("yesterday")
    assert first.telemetry.shutdown() == FlushResult(spooled=1)
    switch.down = Answer(422, body=b"no")
    caplog.clear()
    second = App(server)
    wait_until(lambda: not on_disk())
    second.end("today")
    assert second.telemetry.shutdown().dropped == 2
    lines = {line.split(":")[0].split(" of trace ")[0]: line for line in caplog.messages if "Dropped " in line}
    assert sorted(lines) == ["Dropped span 'today'", "Dropped span 'yesterday'"]
    assert " (left by an earlier run): " in lines["Dropped span 'yesterday'"]
    assert re.match(r"Dropped span 'today' of trace tr-\w+: ", lines["Dropped span 'today'"])


def test_spool_consumer_starts_with_a_complete_pipeline(
    server: ScriptedServer, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may run before the constructor goes on."""
    switch.down = DOWN
    first = App(server)
    first.end("a")
    assert first.telemetry.shutdown() == FlushResult(spooled=1)
    seen: list[tuple[Any, set[str]]] = []

    def wake(drainer: Any) -> None:
        pipeline = drainer._send.__self__
        seen.append((pipeline, set(vars(pipeline))))

    with monkeypatch.context() as patch:
        patch.setattr(spool_consumer.SpoolConsumer, "wake", wake)
        second = exporter(server)
        pipeline, there = seen[0]
        assert there == set(vars(pipeline))
        second.shutdown(1000)


def test_spans_during_a_known_outage_go_to_disk_at_once(app: App, switch: Switch) -> None:
    switch.down = DOWN
    app.end("a")
    wait_until(on_disk)
    begin, before = time.monotonic(), len(switch.asked)
    for number in range(3):
        app.end(f"more {number}")
        until_on_disk(number + 2)
    asked, seconds = Counter(switch.asked[before:]), time.monotonic() - begin
    assert asked.pop("a", 0) <= 3 + math.log2(2 + seconds)  # the probes of the oldest, with growing pauses
    assert set(asked.values()) <= {1}  # what came while the next probe was due
    wait_until(lambda: app.telemetry.stats().spooled == 4)


def test_spool_consumer_sends_oldest_requests_first(app: App, switch: Switch) -> None:
    switch.down = DOWN
    names = [str(number) for number in range(6)]
    for number, name in enumerate(names):
        app.end(name)
        app.flush(0.5)
        until_on_disk(number + 1)
    switch.down = None
    wait_until(lambda: not on_disk())
    assert switch.order == names


def test_hanging_server_gets_at_most_two_requests_before_spooling(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(then=Answer(200, hold=release))
    app = App(server, timeout=0.5)
    app.provider.get_tracer("tests").start_span("a").end()
    try:
        wait_until(on_disk)
        [path] = on_disk()
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
        wait_until(on_disk)
        wait_until(lambda: app.telemetry.stats().spooled == 1)
    finally:
        release.set()
        assert app.telemetry.shutdown()
    assert app.telemetry.stats().delivered == 2
    assert on_disk() == []


def test_shutdown_during_a_request_spools_its_spans(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(then=Answer(200, hold=release))
    app = App(server, timeout=30)
    try:
        app.end("a")
        server.wait_for(1)
        begin = time.monotonic()
        result = app.telemetry.shutdown(0.5)
        assert time.monotonic() - begin < 15  # the request has 30
        assert result.dropped == 0
        assert sum(int(path.name.split("-")[1]) for path in on_disk()) == 1
    finally:
        release.set()


def test_export_returns_success_for_spooled_spans(server: ScriptedServer, switch: Switch) -> None:
    switch.down = DOWN
    made = exporter(server)
    try:
        assert made.export(make_spans("a", "b")) is SpanExportResult.SUCCESS
        assert len(on_disk()) == 1
        assert made.export(make_spans("c")) is SpanExportResult.SUCCESS
        assert switch.asked.count("c") <= 1  # once if the server was due to be asked again, and mostly not at all
        assert made.force_flush()
        switch.down = None
        assert made.force_flush()
        assert switch.taken == {"a": 1, "b": 1, "c": 1}
    finally:
        made.shutdown(1000)


def test_exporter_without_spool_setting_writes_nothing(server: ScriptedServer, switch: Switch) -> None:
    switch.down = DOWN
    made = MLflowSpanExporter(tracking_uri=server.url, experiment_id=1, timeout=0.5)
    assert made.export(make_spans("a")) is SpanExportResult.FAILURE
    made.shutdown()
    assert on_disk() == []
    assert made.stats().dropped == 1


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
    switch: Switch,
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
    assert len(on_disk()) == spooled
    assert Path(os.environ["XDG_STATE_HOME"]).exists() is spooled


@pytest.mark.parametrize(("spool", "spooled"), [(None, False), ("true", True)])
def test_configure_with_otlp_endpoint_spools_only_on_request(
    server: ScriptedServer, switch: Switch, monkeypatch: pytest.MonkeyPatch, spool: str | None, spooled: bool
) -> None:
    """A Collector may keep what it gets, and send it to others as well."""
    if spool:
        monkeypatch.setenv("MLFLOW_OTLP_SPOOL", spool)
    switch.down = DOWN
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.traces_url)
    telemetry = configure(experiment_id=1, tracer_provider=provider)
    provider.get_tracer("tests").start_span("a").end()
    assert telemetry.shutdown().spooled == spooled
    provider.shutdown()
    assert len(on_disk()) == spooled


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
    assert on_disk() == []


def test_spooled_request_that_fails_does_not_block_others(server: ScriptedServer) -> None:
    def answer(request: RecordedRequest) -> Answer:
        names = [span.name for span in request.spans()]
        if down:
            return DOWN
        if "poison" in names:
            return Answer(500, body=b"Internal Server Error")
        taken.update(names)
        return ACCEPTED

    down, taken = [True], Counter[str]()
    server.answer_with(TRACES_PATH, answer)
    app = App(server)
    app.end("poison")
    until_on_disk(1)
    for number in range(5):
        app.end(str(number))
        app.flush(0.2)
    down.clear()
    wait_until(lambda: taken == Counter(map(str, range(5))), 60)
    app.telemetry.shutdown(1)
    assert sum(int(path.name.split("-")[1]) for path in on_disk()) <= 1


def test_missing_destination_does_not_block_others(server: ScriptedServer) -> None:
    def answer(request: RecordedRequest) -> Answer:
        if down or request.headers["x-mlflow-experiment-id"] == "404":
            return DOWN
        taken.append(request.headers["x-mlflow-experiment-id"])
        return ACCEPTED

    down, taken = [True], list[str]()
    server.answer_with(TRACES_PATH, answer)
    for number in (404, 1):
        made = exporter(server, experiment_id=number)
        assert made.export(make_spans("a")) is SpanExportResult.SUCCESS
        made.shutdown(100)
    assert len(on_disk()) == 2
    down.clear()
    app = App(server)
    wait_until(lambda: taken == ["1"])
    wait_until(lambda: len(on_disk()) == 1)
    app.telemetry.shutdown(1)


def test_damaged_files_do_not_block_others(server: ScriptedServer, switch: Switch) -> None:
    switch.down = DOWN
    first = App(server)
    for number, name in enumerate("abc"):
        first.end(name)
        until_on_disk(number + 1)
    first.telemetry.shutdown()
    assert len(on_disk()) == 3
    on_disk()[1].write_bytes(b"what")
    switch.down = None
    second = App(server)
    wait_until(lambda: not on_disk())
    assert switch.taken == {"a": 1, "c": 1}
    assert second.telemetry.shutdown().dropped == 1


def test_unusable_spool_folder_keeps_spans_in_memory(
    server: ScriptedServer, switch: Switch, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    told = [line for line in caplog.messages if "cannot be used" in line]
    assert ["more spans" in line for line in told] in ([False], [False, True])  # at once, and what is left at the end


def test_forked_child_does_not_consume_the_parents_spool(app: App, switch: Switch) -> None:
    switch.down = DOWN
    app.end("parent")
    until_on_disk(1)

    def child() -> bool:
        app.end("child")
        result = app.flush()
        app.telemetry.shutdown(1)
        return result.spooled == 1

    assert run_in_fork(child)
    assert len(on_disk()) == 2
    switch.down = None
    assert app.flush().delivered  # no flush waits for what other processes have left
    wait_until(lambda: switch.taken == {"parent": 1, "child": 1})


def test_one_process_consumes_the_spool_and_another_takes_over(server: ScriptedServer, switch: Switch) -> None:
    switch.down = DOWN
    first, second = App(server), App(server)
    for number in range(4):
        first.end(str(number))
        until_on_disk(number + 1)
    drainers = [each.exporter._pipeline.spool_consumer for each in (first, second)]  # type: ignore[union-attr]
    wait_until(lambda: any(each is not None and each.is_leader for each in drainers))
    assert sum(each is not None and each.is_leader for each in drainers) == 1
    holder, other = (first, second) if drainers[0] and drainers[0].is_leader else (second, first)
    holder.telemetry.shutdown(0.5)
    switch.down = None
    other.end("last")
    wait_until(lambda: len(switch.taken) == 5)
    wait_until(lambda: not on_disk())
    assert set(switch.taken.values()) == {1}
    other.telemetry.shutdown(1)


def test_blocked_spool_consumer_releases_the_lock_after_shutdown(
    app: App, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch.down = DOWN
    app.end("a")
    until_on_disk(1)
    pipeline = app.exporter._pipeline
    assert pipeline is not None
    assert pipeline.persistent_queue is not None
    drainer, spool = pipeline.spool_consumer, pipeline.persistent_queue.storage
    assert drainer is not None
    look, reached, go = spool.find_folder, threading.Event(), threading.Event()

    def slow() -> Path | None:
        reached.set()
        assert go.wait(60)
        return look()

    monkeypatch.setattr(spool, "find_folder", slow)
    drainer.wake()
    assert reached.wait(30)
    app.telemetry.shutdown(1)
    go.set()
    assert drainer._thread is not None
    drainer._thread.join(30)
    assert not drainer.is_leader


OLD_SERVER_MAY_HAVE_IT = """
import os, signal, threading
from mlflow_otlp_exporter import MLflowSpanExporter
from support.spans import make_spans
made = MLflowSpanExporter(experiment_id=1, spool=True, timeout=2)
print(made.export(make_spans("a")), flush=True)
threading.Event().wait(60)
"""


def test_kill_during_a_send_marks_the_request_as_uncertain(server: ScriptedServer) -> None:
    release = threading.Event()
    server.answer(DOWN, DOWN, then=Answer(200, hold=release))
    child = subprocess.Popen(
        [sys.executable, "-c", OLD_SERVER_MAY_HAVE_IT],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.url, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        server.wait_for(3, timeout=60)  # the third is the drainer's, and hangs
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        release.set()
    [path] = on_disk()
    _, state = file_format.read_header(path.read_bytes())
    assert state.uncertain
    assert state.attempts >= 1


def test_large_spool_does_not_starve_new_spans(server: ScriptedServer, switch: Switch) -> None:
    switch.down = DOWN
    first = exporter(server)
    for span in make_traces(60):
        assert first.export([span]) is SpanExportResult.SUCCESS
    first.shutdown(100)
    assert len(on_disk()) == 60
    switch.down = None
    turns = threading.Semaphore(6)

    def answer(request: RecordedRequest) -> Answer:
        assert turns.acquire(timeout=60)
        taken.extend(span.name for span in request.spans())
        return ACCEPTED

    taken: list[str] = []
    server.answer_with(TRACES_PATH, answer)
    app = App(server, timeout=60)
    wait_until(lambda: len(taken) == 6)
    app.end("new")
    pipeline = app.exporter._pipeline
    assert pipeline is not None
    wait_until(
        lambda: any(not shipment.origin.is_on_disk for shipment in pipeline.work_queue.all_items()),
        what="new is queued",
    )
    turns.release(100)
    wait_until(lambda: not on_disk())
    assert Counter(taken) == Counter([f"root {number}" for number in range(60)] + ["new"])
    assert taken.index("new") < 12
    app.telemetry.shutdown(1)


class Failing:
    """A request's count that is broken: whoever has delivered the request learns of it."""

    def __call__(self) -> None:
        raise ZeroDivisionError

    def mark_suspect(self, span_count: int, byte_count: int) -> None: ...


def test_error_after_delivery_does_not_send_again(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    made = exporter(server)
    pipeline = made._pipeline
    assert pipeline is not None
    pipeline.submit(make_spans("once"), lambda _spans, _size: Failing())
    wait_until(lambda: "by a mistake in this library" in caplog.text)
    made.export(make_spans("later"))
    wait_until(lambda: made.stats().delivered == 2)
    made.shutdown(5_000)
    assert made.stats().spooled == 0
    sent = [span.name for request in server.to(TRACES_PATH) for span in request.spans()]
    assert sent == ["once", "later"]
