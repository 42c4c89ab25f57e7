"""The table of docs/conventions.md: what MLflow's console shows of each source, without this library and with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from support.cells import COLUMNS, Cell
from support.environments import ROOT

PAGE = ROOT / "docs" / "conventions.md"
_BEGIN = "<!-- Made by `make conventions`, and compared with the score by tests/test_corpus.py -->\n"
_END = "<!-- end of table -->\n"

FEATURES: Mapping[str, tuple[str, ...]] = {
    "name": ("trace_name",),
    "previews": ("request", "response"),
    "session, user": ("session", "user"),
    "tags": ("tags", "metadata"),
    "types, search": ("span_types", "search_type"),
    "chat": ("chats", "image"),
    "tool definitions": ("tools",),
    "tool calls": ("tool_names", "tool_arguments", "tool_results"),
    "documents": ("documents",),
    "tokens": ("usage", "cache", "usage_once"),
    "cost": ("cost", "cost_once"),
    "model, provider": ("model", "provider"),
    "errors": ("error_span",),
}
assert sorted(COLUMNS) == sorted(column for columns in FEATURES.values() for column in columns)


def tables(stock: Sequence[Cell], ours: Sequence[Cell], truth: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables as Markdown.

    Args:
        stock: What upstream's exporter gives.
        ours: What this library's gives.
        truth: What must be seen, by trace.
    """
    return f"{_scores(stock, ours)}\n{_unrecoverable(ours, truth)}"


def _scores(stock: Sequence[Cell], ours: Sequence[Cell]) -> str:
    rows = [f"| source | {' | '.join(FEATURES)} |", "|---" * (len(FEATURES) + 1) + "|"]
    sources = sorted({_source(cell) for cell in ours})
    for source in [*sources, None]:
        shown = []
        for columns in FEATURES.values():
            before, after = (
                [c for c in cells if c.column in columns and not c.apart and source in (None, _source(c))]
                for cells in (stock, ours)
            )
            shown.append(share(sum(c.right for c in before), sum(c.right for c in after), len(after)))
        rows.append(f"| {source or 'all'} | {' | '.join(shown)} |")
    return "\n".join(rows) + "\n"


def share(before: int, after: int, count: int) -> str:
    """How many of a count were right before, and after."""
    if not count:
        return ""
    return f"{after}/{count}" if before == after else f"{before} → {after}/{count}"


def _unrecoverable(ours: Sequence[Cell], truth: Mapping[str, Mapping[str, Any]]) -> str:
    missing: dict[tuple[str, str], dict[str, None]] = {}
    for cell in ours:
        if cell.apart and not cell.right:
            said = str(truth[cell.trace]["reason"])
            missing.setdefault((_source(cell), said), {})[cell.column] = None
    rows = ["| source | what cannot be shown | because |", "|---|---|---|"]
    for (source, said), columns in missing.items():
        rows.append(f"| {source} | {', '.join(columns).replace('_', ' ')} | {said} |")
    return "\n".join(rows) + "\n"


def _source(cell: Cell) -> str:
    return cell.trace.partition("/")[0]


def written() -> str:
    """The tables as they stand in the page."""
    text = PAGE.read_text()
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]


def write(stock: Sequence[Cell], ours: Sequence[Cell], truth: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts the tables into the page."""
    text = PAGE.read_text()
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    PAGE.write_text(text[:begin] + tables(stock, ours, truth) + text[end:])
