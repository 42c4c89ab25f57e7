"""Any sequence of writes, kills at any step, restarts, drains and damage: nothing that was acknowledged is missing.

The kill is simulated at every call to the operating system that the spool makes; real kills are in `test_chaos.py`.
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

from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.traces import ended

_CALLS = ("open", "write", "close", "replace", "unlink", "mkdir", "scandir")
_numbers = itertools.count()


class Killed(BaseException):
    """The process is no more."""


class Kill:
    """Ends the process at its nth call to the operating system, before or after the call."""

    def __init__(self, after_calls: int, *, before: bool) -> None:
        self.left, self.before = after_calls, before

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for name in _CALLS:
            self._patch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left < 0 and name != "close":  # the kernel closes files whatever happens
                if not self.before and self.left == -1:  # a write, by half
                    if name == "write":
                        call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    elif name == "open":
                        os.close(call(*arguments, **more))
                    elif name != "scandir":
                        call(*arguments, **more)
                raise Killed
            return call(*arguments, **more)

        return wrapped

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


class Process:
    """A process with a spool: its own view of the folder, and maybe the lock."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        settings = SpoolSettings(spool=True, spool_dir=str(folder))
        self.spool = SpoolStorage(settings, "target", "about", ProblemLog(), clock=clock)
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
        self.maybe: dict[int, list[EncodedSpan]] = {}  # killed while it was put in, or taken out
        self.damaged: set[int] = set()
        self.alive: list[Process] = []

    def teardown(self) -> None:
        self._patch.undo()
        for process in self.alive:
            process.lock.release()
        shutil.rmtree(self.root)

    @initialize(target=processes)
    def first(self) -> Process:
        return self._started()

    @rule(target=processes)
    def start(self) -> Process:
        return self._started()

    def _started(self) -> Process:
        process = Process(self.root, lambda: self.now)
        self.alive.append(process)
        return process

    def _request(self) -> list[EncodedSpan]:
        return [SpanEncoder().encode(span) for span in ended(1)]

    def _bury(self, process: Process) -> None:
        process.lock.release()  # as the kernel does
        self.alive.remove(process)

    @rule(process=processes)
    def put(self, process: Process) -> None:
        request = self._request()
        assert process.spool.append(Destination(), request)
        self.acknowledged[request[0].span_id] = request

    @rule(process=consumes(processes), calls=st.integers(0, 12), before=st.booleans())
    def put_and_be_killed(self, process: Process, calls: int, before: bool) -> None:
        request = self._request()
        try:
            with Kill(calls, before=before):
                acknowledged = process.spool.append(Destination(), request)
        except Killed:
            self.maybe[request[0].span_id] = request
        else:
            assert acknowledged
            self.acknowledged[request[0].span_id] = request
        self._bury(process)

    def _take(self, process: Process) -> tuple[Entry, list[EncodedSpan]] | None:
        if not process.lock.acquire():
            return None
        for entry in process.spool.entries():
            loaded = process.spool.checkout(entry)
            if loaded is not None:
                process.spool.write_state(
                    entry, DeliveryState(loaded[1].attempts + 1, uncertain=True, sent_at=self.now)
                )
                return entry, loaded[2]
        return None

    @rule(process=processes)
    def deliver_the_oldest(self, process: Process) -> None:
        taken = self._take(process)
        if taken is not None:
            entry, request = taken
            oldest = next(iter(self.acknowledged.values()), None)
            known = {**self.acknowledged, **self.maybe}
            assert known[request[0].span_id] == request
            if not self.maybe and not self.damaged:
                assert request == oldest
            process.spool.remove(entry)
            self.acknowledged.pop(request[0].span_id, None)
            self.maybe.pop(request[0].span_id, None)

    @rule(process=consumes(processes), calls=st.integers(0, 8), before=st.booleans())
    def deliver_and_be_killed(self, process: Process, calls: int, before: bool) -> None:
        taken = self._take(process)
        if taken is not None:
            entry, request = taken
            try:
                with Kill(calls, before=before):
                    process.spool.remove(entry)
            except Killed:
                self.maybe[request[0].span_id] = request
            else:
                self.maybe.pop(request[0].span_id, None)
            self.acknowledged.pop(request[0].span_id, None)
        self._bury(process)

    @rule(process=processes)
    def take_and_put_back(self, process: Process) -> None:
        taken = self._take(process)
        if taken is not None:
            process.spool.release(taken[0])

    @rule(process=consumes(processes))
    def killed(self, process: Process) -> None:
        self._bury(process)

    @rule(process=processes)
    def sweep(self, process: Process) -> None:
        process.spool.remove_temporary_files()

    @rule(seconds=st.sampled_from([-86_400.0, 0.1, 5_000.0]))
    def clock(self, seconds: float) -> None:
        self.now += seconds

    @rule(position=st.integers(0, 5), keep=st.integers(0, 400))
    def damage(self, position: int, keep: int) -> None:
        files = sorted(self.root.glob("target/*.otlp"))
        if position < len(files):
            content = files[position].read_bytes()
            # Seldom the file of a request that nobody knows of; then nothing is missing afterwards.
            known = {**self.acknowledged, **self.maybe}
            span_id = spool_file.decode_file(content)[2][0].span_id if _whole(content) else None
            files[position].write_bytes(content[: keep % max(1, len(content))])
            if span_id in known:
                self.damaged.add(span_id)
                self.acknowledged.pop(span_id, None)
                self.maybe.pop(span_id, None)

    @rule()
    def foreign(self) -> None:
        if (self.root / "target").is_dir():
            (self.root / "target" / f"{next(_numbers)}.otlp").write_bytes(b"foreign")

    @invariant()
    def nothing_is_missing_and_nothing_there_twice(self) -> None:
        found: list[int] = []
        for path in sorted(self.root.glob("target/*.otlp")):
            content = path.read_bytes()
            if _whole(content):
                found.append(spool_file.decode_file(content)[2][0].span_id)
        assert len(found) == len(set(found))
        assert set(self.acknowledged) <= set(found)
        assert set(found) <= set(self.acknowledged) | set(self.maybe)


def _whole(content: bytes) -> bool:
    try:
        spool_file.decode_file(content)
    except (spool_file.CorruptFileError, spool_file.UnsupportedVersionError):
        return False
    return True


Machine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMachine = Machine.TestCase
