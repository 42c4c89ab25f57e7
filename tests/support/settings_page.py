"""The tables of docs/configuration.md, and the short one of README, from the code (`make configuration`).

python -m support.settings_page
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, configure
from mlflow_otlp_exporter._internal.config import parsers, urls
from mlflow_otlp_exporter._internal.config.schema import SETTINGS, Setting, format_value
from support.environments import ROOT

PAGE, README = ROOT / "docs" / "configuration.md", ROOT / "README.md"
# What most apps set, in the order in which README has it.
MOST_USED = (
    "tracking_uri",
    "experiment",
    "workspace",
    "token_file",
    "token",
    "username",
    "auto_instrument",
    "mask",
    "spool_dir",
)
# How people write what each parser reads. One that is missing here is named by the KeyError.
TYPES: Mapping[Any, str] = {
    urls.parse_endpoint: "address",
    urls.parse_tracking_uri: "address",
    parsers.parse_length: "integer from 0",
    parsers.parse_globs: "patterns, or `none`",
    parsers.parse_hidden: "true or false each",
    parsers.parse_mask: "names",
    parsers.parse_boolean: "true or false",
    parsers.parse_boolean_or_names: "true, false or names",
    parsers.parse_experiment_id: "number",
    parsers.parse_experiment_name: "text",
    parsers.parse_optional_file: "file",
    parsers.parse_directory: "folder",
    parsers.parse_directory_or_none: "folder, or `none`",
    parsers.parse_headers: "`name=value` pairs",
    parsers.parse_positive_integer: "integer above 0",
    parsers.parse_ratio: "number from 0 to 1",
    parsers.parse_readable_file: "file",
    parsers.parse_seconds: "seconds above 0",
    parsers.parse_size_limit: "bytes",
    parsers.parse_text: "text",
    parsers.parse_names: "names",
    parsers.parse_workspace: "text",
    str: "text",
}
# Parsers that are made by a function.
_MADE_TYPES = {"choices": "names", "one_of": "word"}
_OWNERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("`configure()`", configure),
    ("exporter", MLflowSpanExporter.__init__),
    ("processor", MLflowSpanProcessor.__init__),
)
_INSIDE_CREDENTIALS = ("token", "token_file", "username", "password")


def settings_table() -> str:
    """All settings."""
    rows = ["| setting | argument of | environment variables | type | default | description |", "|---" * 6 + "|"]
    for setting in SETTINGS:
        of, said = _owners(setting), _linked(setting.description, "")
        cells = (f"`{setting.name}`", of, _variables(setting), _type(setting), _default(setting), said)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def short_table() -> str:
    """The settings that most apps set."""
    by_name = {setting.name: setting for setting in SETTINGS}
    # The first variable is the one to take; the others are for those who have them already.
    rows = [
        f"| `{setting.variables[0]}` | {_default(setting)} | {_linked(setting.description, 'docs/')} |"
        for setting in (by_name[name] for name in MOST_USED)
    ]
    return "\n".join(["| variable | default | description |", "|---|---|---|", *rows]) + "\n"


def arguments_table() -> str:
    """What `configure()` takes, from its docstring."""
    rows = ["| argument | description |", "|---|---|"]
    return "\n".join(rows + [f"| `{name}` | {_linked(said, '')} |" for name, said in _documented(configure)]) + "\n"


def _documented(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    text = inspect.getdoc(function) or ""
    section = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    for each in re.split(r"\n(?=    \w)", section):
        name, _, said = each.partition(":")
        yield name.strip(), " ".join(said.split())


def _owners(setting: Setting) -> str:
    found = [name for name, owner in _OWNERS if setting.name in inspect.signature(owner).parameters]
    if setting.name in _INSIDE_CREDENTIALS:
        found.append("`credentials=`")
    return ", ".join(found) or "-"


def _variables(setting: Setting) -> str:
    return ", ".join(f"`{name}`" for name in setting.variables) or "-"


def _type(setting: Setting) -> str:
    maker, is_made, _ = setting.parse.__qualname__.partition(".<locals>")
    return _MADE_TYPES[maker] if is_made else TYPES[setting.parse]


def _default(setting: Setting) -> str:
    return f"`{format_value(setting.default).lower()}`" if setting.default not in (None, {}, ()) else "-"


def _linked(said: str, folder: str) -> str:
    return re.sub(r"\bdocs/(\w+\.md)", rf"[\1]({folder}\1)", said)


def tables() -> list[tuple[Any, str, str]]:
    """Each table with its page and its name there."""
    long, arguments, short = settings_table(), arguments_table(), short_table()
    return [(PAGE, "settings", long), (PAGE, "arguments", arguments), (README, "settings", short)]


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table."""
    made = "generated by `make configuration`, and compared with the code by tests/docs/test_configuration_page.py"
    return f"<!-- {name}: {made} -->\n", f"<!-- end of {name} -->"


def main() -> None:
    """Puts the tables into their pages."""
    for page, name, table in tables():
        begin, end = marks(name)
        text = page.read_text()
        page.write_text(text[: text.index(begin) + len(begin)] + table + text[text.index(end) :])


if __name__ == "__main__":
    main()
