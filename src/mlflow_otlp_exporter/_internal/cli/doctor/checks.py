"""What `mlflow-otlp doctor` finds at a step, and how it is written for people and for programs."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlflow_otlp_exporter._internal.common.codes import MessageCode


class CheckStatus(enum.Enum):
    """What became of a step."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    NOT_PERMITTED = "not permitted"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckResult:
    """One step.

    Attributes:
        step: Its name.
        state: What became of it.
        found: What was found, and where it came from; holds no secret.
        said: The server's words.
        cause: The most likely cause.
        fix: The command or variable that mends it.
        code: Under which docs/troubleshooting.md explains it.
    """

    step: str
    state: CheckStatus
    found: str
    said: str = ""
    cause: str = ""
    fix: str = ""
    code: MessageCode | None = None

    def lines(self) -> Iterator[str]:
        """The finding for people: one line, and where something is wrong what to know and to do."""
        code = f" [{self.code}]" if self.code else ""
        yield f"{self.state.value:<13}  {self.step:<16}  {self.found}{code}"
        for name, text in (("server says", self.said), ("cause", self.cause), ("fix", self.fix)):
            if text:
                yield f"{'':15}{name + ':':<16}  {text}"

    def as_json(self) -> dict[str, Any]:
        """The finding for programs; what is empty is left out."""
        found = {
            "step": self.step,
            "state": self.state.value.lower(),
            "found": self.found,
            "server_says": self.said,
            "cause": self.cause,
            "fix": self.fix,
            "code": str(self.code or ""),
        }
        return {name: value for name, value in found.items() if value}
