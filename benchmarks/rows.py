"""What a benchmark finds, as rows of one table."""

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
    **more: Any,
) -> dict[str, Any]:
    """Compares alternating runs.

    Args:
        what: What was measured.
        unit: Its unit.
        ours: One value a run.
        theirs: The same of what ours is compared to.
        bound: What the ratio ours / theirs has to stay below.
        ours_bound: What our largest value has to stay below, instead of a ratio.
        best: Whether the ratio is that of the minima, which other processes disturb less than medians.
        more: Anything else worth keeping.
    """
    chosen = min if best else statistics.median
    first, second = chosen(ours), chosen(theirs)
    ratio = first / second if second else None
    held = None
    if bound is not None and ratio is not None:
        held = ratio <= bound
    elif ours_bound is not None:
        held = max(ours) <= ours_bound
    return {
        "what": what,
        "unit": unit,
        "ours": first,
        "theirs": second,
        "ratio": ratio,
        "bound": bound if bound is not None else ours_bound,
        "bound_on": "ratio" if bound is not None else "ours" if ours_bound is not None else None,
        "held": held,
        "chosen": "minimum" if best else "median",
        "ours_runs": list(ours),
        "theirs_runs": list(theirs),
        "ours_spread": _spread(ours),
        "theirs_spread": _spread(theirs),
        **more,
    }


def _spread(values: Sequence[float]) -> float:
    """How far the runs lie apart, as a part of their median: the noise."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def shown(name: str, result: Mapping[str, Any]) -> str:
    """The table of a benchmark, ready to print."""
    lines = []
    for found in result["rows"]:
        ratio = "-" if found["ratio"] is None else f"{found['ratio']:.3f}"
        bound = "" if found["bound"] is None else f"{found['bound_on']} <= {found['bound']:g}"
        verdict = {True: "held", False: "MISSED", None: ""}[found["held"]]
        lines.append(
            f"{name + ': ' + found['what']:<66} {_number(found['ours']):>9} {_number(found['theirs']):>9} "
            f"{found['unit']:<8} {ratio:>7}  {bound:<16} {verdict}"
        )
    return "\n".join(lines)


HEADING = f"{'what':<66} {'ours':>9} {'theirs':>9} {'unit':<8} {'ratio':>7}  bound"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
