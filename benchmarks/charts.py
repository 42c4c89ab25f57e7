"""Draws results of benchmarks as SVG, readable on light and dark pages, and lists them as a table in Markdown."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
_WIDTH, _LABEL_WIDTH, _BAR_HEIGHT, _TOP = 860, 430, 26, 56
_STYLE = (
    "text{font:13px sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.axis{stroke:#57606a}"
    ".ours{fill:#0a7ea4}.missed{fill:#bc4c00}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.axis{stroke:#9198a1}.ours{fill:#3fb8e0}.missed{fill:#f0883e}}"
)


def draw_ratios(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a chart of the ratios ours / theirs; the line is at 1, where both are equal."""
    drawn = [values for values in rows if values["ratio"] is not None]
    height = _TOP + _BAR_HEIGHT * len(drawn) + 16
    longest = max([1.25, *(values["ratio"] for values in drawn)])
    scale = (_WIDTH - _LABEL_WIDTH - 70) / longest
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="title" x="8" y="24">{html.escape(title)}</text>',
    ]
    for number, values in enumerate(drawn):
        top = _TOP + number * _BAR_HEIGHT
        name = "missed" if values["held"] is False else "ours"
        size = values["ratio"] * scale
        pieces += (
            f'<text x="{_LABEL_WIDTH - 8}" y="{top + 15}" text-anchor="end">{html.escape(values["what"])}</text>',
            f'<rect class="{name}" x="{_LABEL_WIDTH}" y="{top}" width="{size:.1f}" height="{_BAR_HEIGHT - 8}"/>',
            f'<text x="{_LABEL_WIDTH + size + 6:.1f}" y="{top + 14}">{values["ratio"]:.2f}</text>',
        )
    one = _LABEL_WIDTH + scale
    pieces += (
        f'<line class="axis" x1="{one:.1f}" x2="{one:.1f}" y1="{_TOP - 8}" y2="{height - 12}" stroke-dasharray="4"/>',
        f'<text x="{one:.1f}" y="{_TOP - 12}" text-anchor="middle">1 = as upstream</text></svg>\n',
    )
    return "\n".join(pieces)


def list_rows(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows of all benchmarks as a table in Markdown."""
    lines = [
        "| benchmark | measured | ours | upstream | unit | ratio | bound | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for values in result["rows"]:
            ratio = "" if values["ratio"] is None else f"{values['ratio']:.2f}"
            bound = "" if values["bound"] is None else f"{values['bound']:g}{'' if values['held'] else ' (missed)'}"
            runs = f"{values['chosen']} of {len(values['ours_runs'])}"
            cells = (name, values["what"], f"{values['ours']:.4g}", f"{values['theirs']:.4g}", values["unit"])
            lines.append(f"| {' | '.join((*cells, ratio, bound, runs))} |")
    return "\n".join(lines) + "\n"


def update_page(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the figures between the marks in `performance.md` of a folder, and the charts in its folder `images`."""
    page = folder / "performance.md"
    before, _, figures = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = figures.partition(END)
    parts = [list_rows(results)]
    for name, result in results.items():
        chart = f"images/benchmark-{name}.svg"
        (folder / chart).write_text(draw_ratios(f"{name}: ours in relation to upstream", result["rows"]), "utf-8")
        parts.append(f"![Chart of the ratios of the benchmark {name}, as in the table]({chart})\n")
    page.write_text(before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after, encoding="utf-8")
