"""Results of a benchmark as rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def row(
    what: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    bound: float | None = None,
    ours_bound: float | None = None,
    best: bool = False,
    **details: Any,
) -> dict[str, Any]:
    """Compare alternating runs.

    Args:
        what: Name of the measured quantity.
        unit: Unit of the values.
        ours: One value per run of our side.
        theirs: One value per run of the other side.
        bound: Upper bound of the ratio ours / theirs.
        ours_bound: Upper bound of our largest value, instead of a ratio.
        best: Compare minima, which other processes disturb less than medians.
        details: Additional values for the JSON output.
    """
    chosen = min if best else statistics.median
    first, second = chosen(ours), chosen(theirs)
    ratio = first / second if second else None
    is_within_bound = None
    if bound is not None and ratio is not None:
        is_within_bound = ratio <= bound
    elif ours_bound is not None:
        is_within_bound = max(ours) <= ours_bound
    return {
        "what": what,
        "unit": unit,
        "ours": first,
        "theirs": second,
        "ratio": ratio,
        "bound": bound if bound is not None else ours_bound,
        "bound_on": "ratio" if bound is not None else "ours" if ours_bound is not None else None,
        "held": is_within_bound,
        "chosen": "minimum" if best else "median",
        "ours_runs": list(ours),
        "theirs_runs": list(theirs),
        "ours_spread": _compute_spread(ours),
        "theirs_spread": _compute_spread(theirs),
        **details,
    }


def _compute_spread(values: Sequence[float]) -> float:
    """Return the noise: the range of the runs, relative to their median."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def format_rows(name: str, result: Mapping[str, Any]) -> str:
    """Format the rows of a benchmark as a table."""
    lines = []
    for values in result["rows"]:
        what, ours, theirs = values["what"], _format_number(values["ours"]), _format_number(values["theirs"])
        ratio = "-" if values["ratio"] is None else f"{values['ratio']:.3f}"
        bound = "" if values["bound"] is None else f"{values['bound_on']} <= {values['bound']:g}"
        verdict = {True: "held", False: "MISSED", None: ""}[values["held"]]
        lines.append(
            f"{f'{name}: {what}':<66} {ours:>9} {theirs:>9} {values['unit']:<8} {ratio:>7}  {bound:<16} {verdict}"
        )
    return "\n".join(lines)


HEADING = f"{'benchmark':<66} {'ours':>9} {'theirs':>9} {'unit':<8} {'ratio':>7}  bound"


def _format_number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
