"""Results of the checks of `mlflow-otlp doctor`, as lines of text and as JSON."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlflow_otlp_exporter._internal.cli.output import paint
from mlflow_otlp_exporter._internal.common.bounded import bounded_text
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import HINTS, hint_for

_MAX_DETAIL_LENGTH = 900


class CheckStatus(enum.Enum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    NOT_PERMITTED = "not permitted"
    SKIPPED = "skipped"


_STYLES = {CheckStatus.OK: "green", CheckStatus.WARNING: "yellow", CheckStatus.FAILED: "red"}


@dataclass(frozen=True)
class CheckResult:
    """Result of one check; `detail` contains no secret."""

    step: str
    status: CheckStatus
    detail: str
    server_message: str = ""
    cause: str = ""
    fix: str = ""
    code: MessageCode | None = None
    is_consequence: bool = False  # skipped, because another step failed

    def __post_init__(self) -> None:
        # The detail may quote servers: names of experiments, headers, ids.
        detail = "".join(character if character.isprintable() else "?" for character in self.detail)
        object.__setattr__(self, "detail", bounded_text(detail, _MAX_DETAIL_LENGTH))

    def with_address(self, url: str, variable: str, *, has_credential: bool) -> CheckResult:
        """Return the result with the hint for a server, if it has that of its code."""
        if self.code is None or (self.cause, self.fix) != HINTS[self.code]:
            return self
        return replace(self, **hint_for(self.code, url, variable, has_credential=has_credential)._asdict())

    def lines(self) -> Iterator[str]:
        """Yield one line, and further lines for server message, cause and fix."""
        code = f" [{self.code}]" if self.code else ""
        status = paint(f"{self.status.value:<13}", _STYLES.get(self.status, ""))
        yield f"{status}  {self.step:<16}  {self.detail}{code}"
        for name, text in (("server says", self.server_message), ("cause", self.cause), ("fix", self.fix)):
            if text:
                yield f"{'':15}{name + ':':<16}  {text}"

    def as_json(self) -> dict[str, Any]:
        """Return the result for `--json`, without empty values."""
        values = {
            "step": self.step,
            "state": self.status.value.lower(),
            "found": self.detail,
            "server_says": self.server_message,
            "cause": self.cause,
            "fix": self.fix,
            "code": str(self.code or ""),
        }
        return {name: value for name, value in values.items() if value}


def create_failure(step: str, code: MessageCode, detail: str, server_message: str = "") -> CheckResult:
    """Create the result of a failed check, with cause and fix of its code."""
    return CheckResult(step, CheckStatus.FAILED, detail, server_message, *HINTS[code], code)


def create_warning(step: str, code: MessageCode, detail: str) -> CheckResult:
    return CheckResult(step, CheckStatus.WARNING, detail, "", *HINTS[code], code)
