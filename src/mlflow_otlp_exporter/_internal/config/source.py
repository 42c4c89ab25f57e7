"""Where a value came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SettingSource:
    """Where a value came from.

    Attributes:
        kind: `argument`, `variable`, `file`, `service account` or `default`.
        name: The argument's, variable's or file's name; empty for a default.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return {"argument": f"argument {self.name}=", "variable": f"environment variable {self.name}"}.get(
            self.kind, f"{self.kind} {self.name}".strip()
        )
