"""Feedback on disk, a small file each, in the spool's folder; read by the next run of the app.

No file is locked: whoever finds one sends it, and MLflow takes an assessment once, as it has an id of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.files import atomic_write
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment

_FOLDER, _SUFFIX = "feedback", ".json"
_MOST = 10_000


class AssessmentFiles:
    """Puts feedback on disk and takes it out; never raises.

    Args:
        folder: Gives the spool's folder, made if it is missing.
        existing: Gives the spool's folder; None if there is none.
        max_age: Seconds after which a file is given up.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        folder: Callable[[], Path],
        existing: Callable[[], Path | None],
        max_age: float,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._existing, self._max_age, self._clock = folder, existing, max_age, clock

    def put(self, assessment: Assessment) -> bool:
        """Puts one on disk; whether it is there."""
        try:
            folder = self._folder() / _FOLDER
            folder.mkdir(mode=0o700, exist_ok=True)
            with os.scandir(folder) as there:
                if sum(1 for _ in there) >= _MOST:
                    return False
            path = folder / f"{assessment.id}{_SUFFIX}"
            content = json.dumps({"workspace": assessment.workspace, "assessment": assessment.body}).encode()
            atomic_write(path, content, f"{os.getpid():x}-{os.urandom(4).hex()}", sync=False)
        except (OSError, ValueError):
            return False
        return True

    def remove(self, assessment: Assessment) -> None:
        """Takes one off the disk, if it is there."""
        with suppress(OSError):
            folder = self._existing()
            if folder is not None:
                (folder / _FOLDER / f"{assessment.id}{_SUFFIX}").unlink(missing_ok=True)

    def left(self) -> Iterator[Assessment]:
        """Those that are on disk; what is damaged or too old is taken away."""
        try:
            folder = self._existing()
            paths = sorted((folder / _FOLDER).glob(f"*{_SUFFIX}")) if folder is not None else []
        except OSError:
            return
        for path in paths:
            try:
                if self._clock() - path.stat().st_mtime <= self._max_age:
                    found = json.loads(path.read_text(encoding="utf-8"))
                    body, workspace = dict(found["assessment"]), found["workspace"]
                    if f"{body['assessment_id']}{_SUFFIX}" == path.name:
                        yield Assessment(workspace, str(body["trace_id"]), body)
                        continue
            except (OSError, ValueError, KeyError, TypeError):
                pass
            with suppress(OSError):
                path.unlink()
