"""Any sequence of writes, kills at any step, restarts, deliveries and damage: no acknowledged request is missing.

Kills are simulated at each system call of the spool; real kills are in `test_chaos.py`.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from mlflow_otlp_exporter._internal.common.files import FileLock
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.traces import make_traces

_CALLS = ("open", "write", "close", "replace", "unlink", "mkdir", "scandir")
_numbers = itertools.count()


class Killed(BaseException):
    """The process is dead."""


class Kill:
    """Kills the process at its nth system call, before or after the call."""

    def __init__(self, after_calls: int, *, before: bool) -> None:
        self.remaining_calls, self.before = after_calls, before

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for name in _CALLS:
            self._patch.setattr(os, name, self._wrap_call(name, getattr(os, name)))

    def _wrap_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run_or_kill(*arguments: Any, **more: Any) -> Any:
            self.remaining_calls -= 1
            if self.remaining_calls < 0 and name != "close":  # the kernel closes files whatever happens
                if not self.before and self.remaining_calls == -1:  # a write is cut in half
                    if name == "write":
                        call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    elif name == "open":
                        os.close(call(*arguments, **more))
                    elif name != "scandir":
                        call(*arguments, **more)
                raise Killed
            return call(*arguments, **more)

        return run_or_kill

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


class Process:
    """A process with its own view of the folder, and perhaps the lock."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        settings = SpoolSettings(spool=True, spool_dir=str(folder))
        self.storage = SpoolStorage(settings, "target", "about", ProblemLog(), clock=clock)
        self.lock = FileLock(folder / "lock")
        self.hand: Entry | None = None
        self.number = next(_numbers)


class Machine(RuleBasedStateMachine):
    processes: Bundle[Process] = Bundle("processes")

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
        self._patch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)
        self.root = Path(tempfile.mkdtemp())
        self.now = 1e9
        self.acknowledged: dict[int, list[EncodedSpan]] = {}  # by the span's id
        self.interrupted: dict[int, list[EncodedSpan]] = {}  # killed while it was written or removed
        self.damaged: set[int] = set()
        self.alive: list[Process] = []

    def teardown(self) -> None:
        self._patch.undo()
        for process in self.alive:
            process.lock.release()
        shutil.rmtree(self.root)

    @initialize(target=processes)
    def first(self) -> Process:
        return self._start_process()

    @rule(target=processes)
    def start(self) -> Process:
        return self._start_process()

    def _start_process(self) -> Process:
        process = Process(self.root, lambda: self.now)
        self.alive.append(process)
        return process

    def _request(self) -> list[EncodedSpan]:
        return [SpanEncoder().encode(span) for span in make_traces(1)]

    def _end_process(self, process: Process) -> None:
        process.lock.release()  # as the kernel does
        self.alive.remove(process)

    @rule(process=processes)
    def put(self, process: Process) -> None:
        request = self._request()
        assert process.storage.append(Destination(), request)
        self.acknowledged[request[0].span_id] = request

    @rule(process=consumes(processes), calls=st.integers(0, 12), before=st.booleans())
    def put_and_be_killed(self, process: Process, calls: int, before: bool) -> None:
        request = self._request()
        try:
            with Kill(calls, before=before):
                acknowledged = process.storage.append(Destination(), request)
        except Killed:
            self.interrupted[request[0].span_id] = request
        else:
            assert acknowledged
            self.acknowledged[request[0].span_id] = request
        self._end_process(process)

    def _check_out_oldest(self, process: Process) -> tuple[Entry, list[EncodedSpan]] | None:
        if not process.lock.acquire():
            return None
        for entry in process.storage.entries():
            loaded = process.storage.checkout(entry)
            if loaded is not None:
                process.storage.write_state(
                    entry, DeliveryState(loaded[1].attempts + 1, may_have_arrived=True, sent_at=self.now)
                )
                return entry, loaded[2]
        return None

    @rule(process=processes)
    def deliver_the_oldest(self, process: Process) -> None:
        checked_out = self._check_out_oldest(process)
        if checked_out is not None:
            entry, request = checked_out
            oldest = next(iter(self.acknowledged.values()), None)
            requests = {**self.acknowledged, **self.interrupted}
            assert requests[request[0].span_id] == request
            if not self.interrupted and not self.damaged:
                assert request == oldest
            process.storage.remove(entry)
            self.acknowledged.pop(request[0].span_id, None)
            self.interrupted.pop(request[0].span_id, None)

    @rule(process=consumes(processes), calls=st.integers(0, 8), before=st.booleans())
    def deliver_and_be_killed(self, process: Process, calls: int, before: bool) -> None:
        checked_out = self._check_out_oldest(process)
        if checked_out is not None:
            entry, request = checked_out
            try:
                with Kill(calls, before=before):
                    process.storage.remove(entry)
            except Killed:
                self.interrupted[request[0].span_id] = request
            else:
                self.interrupted.pop(request[0].span_id, None)
            self.acknowledged.pop(request[0].span_id, None)
        self._end_process(process)

    @rule(process=processes)
    def take_and_put_back(self, process: Process) -> None:
        checked_out = self._check_out_oldest(process)
        if checked_out is not None:
            process.storage.release(checked_out[0])

    @rule(process=consumes(processes))
    def kill(self, process: Process) -> None:
        self._end_process(process)

    @rule(process=processes)
    def remove_temporary_files(self, process: Process) -> None:
        process.storage.remove_temporary_files()

    @rule(seconds=st.sampled_from([-86_400.0, 0.1, 5_000.0]))
    def clock(self, seconds: float) -> None:
        self.now += seconds

    @rule(position=st.integers(0, 5), keep=st.integers(0, 400))
    def damage(self, position: int, keep: int) -> None:
        files = sorted(self.root.glob("target/*.otlp"))
        if position < len(files):
            content = files[position].read_bytes()
            # Rarely the file belongs to no request of this test, and then none can be missing.
            requests = {**self.acknowledged, **self.interrupted}
            span_id = spool_file.decode_file(content)[2][0].span_id if _is_whole(content) else None
            files[position].write_bytes(content[: keep % max(1, len(content))])
            if span_id in requests:
                self.damaged.add(span_id)
                self.acknowledged.pop(span_id, None)
                self.interrupted.pop(span_id, None)

    @rule()
    def write_foreign_file(self) -> None:
        if (self.root / "target").is_dir():
            (self.root / "target" / f"{next(_numbers)}.otlp").write_bytes(b"foreign")

    @invariant()
    def nothing_is_missing_and_nothing_there_twice(self) -> None:
        span_ids: list[int] = []
        for path in sorted(self.root.glob("target/*.otlp")):
            content = path.read_bytes()
            if _is_whole(content):
                span_ids.append(spool_file.decode_file(content)[2][0].span_id)
        assert len(span_ids) == len(set(span_ids))
        assert set(self.acknowledged) <= set(span_ids)
        assert set(span_ids) <= set(self.acknowledged) | set(self.interrupted)


def _is_whole(content: bytes) -> bool:
    try:
        spool_file.decode_file(content)
    except (spool_file.CorruptFileError, spool_file.UnsupportedVersionError):
        return False
    return True


Machine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMachine = Machine.TestCase
