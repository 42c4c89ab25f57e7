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
# The most used settings, in the order of README.
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
# The type of each parser's values. The KeyError names a missing parser.
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
    parsers.parse_listen_address: "host and port",
    parsers.parse_listen_address_or_none: "host and port, or `none`",
    parsers.parse_directory_or_none: "folder, or `none`",
    parsers.parse_headers: "`name=value` pairs",
    parsers.parse_positive_integer: "integer above 0",
    parsers.parse_ratio: "number from 0 to 1",
    parsers.parse_readable_file: "file",
    parsers.parse_seconds: "seconds above 0",
    parsers.parse_wait: "seconds from 0, or `none`",
    parsers.parse_size_limit: "bytes",
    parsers.parse_text: "text",
    parsers.parse_names: "names",
    parsers.parse_workspace: "text",
    str: "text",
}
# Parsers that a function returns.
_FACTORY_TYPES = {"choices": "names", "one_of": "word"}
_OWNERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("`configure()`", configure),
    ("exporter", MLflowSpanExporter.__init__),
    ("processor", MLflowSpanProcessor.__init__),
)
_INSIDE_CREDENTIALS = ("token", "token_file", "username", "password")


def settings_table() -> str:
    """Return the table of all settings."""
    rows = ["| setting | argument of | environment variables | type | default | description |", "|---" * 6 + "|"]
    for setting in SETTINGS:
        owners, description = _owners(setting), _make_links(setting.description, "")
        columns = (
            f"`{setting.name}`",
            owners,
            _variables(setting),
            _type(setting),
            _default(setting),
            description,
        )
        rows.append(f"| {' | '.join(columns)} |")
    return "\n".join(rows) + "\n"


def short_table() -> str:
    """Return the table of the most used settings."""
    by_name = {setting.name: setting for setting in SETTINGS}
    # Only the first variable: the others exist for users who set them already.
    rows = [
        f"| `{setting.variables[0]}` | {_default(setting)} | {_make_links(setting.description, 'docs/')} |"
        for setting in (by_name[name] for name in MOST_USED)
    ]
    return "\n".join(["| variable | default | description |", "|---|---|---|", *rows]) + "\n"


def arguments_table() -> str:
    """Return the table of the arguments of `configure()`, from its docstring."""
    rows = ["| argument | description |", "|---|---|"]
    return (
        "\n".join(
            rows
            + [f"| `{name}` | {_make_links(description, '')} |" for name, description in _iter_arguments(configure)]
        )
        + "\n"
    )


def _iter_arguments(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    text = inspect.getdoc(function) or ""
    section = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    for argument in re.split(r"\n(?=    \w)", section):
        name, _, description = argument.partition(":")
        yield name.strip(), " ".join(description.split())


def _owners(setting: Setting) -> str:
    owners = [name for name, owner in _OWNERS if setting.name in inspect.signature(owner).parameters]
    if setting.name in _INSIDE_CREDENTIALS:
        owners.append("`credentials=`")
    return ", ".join(owners) or "-"


def _variables(setting: Setting) -> str:
    return ", ".join(f"`{name}`" for name in setting.variables) or "-"


def _type(setting: Setting) -> str:
    factory, is_nested, _ = setting.parse.__qualname__.partition(".<locals>")
    return _FACTORY_TYPES[factory] if is_nested else TYPES[setting.parse]


def _default(setting: Setting) -> str:
    return f"`{format_value(setting.default).lower()}`" if setting.default not in (None, {}, ()) else "-"


def _make_links(text: str, folder: str) -> str:
    return re.sub(r"\bdocs/(\w+\.md)", rf"[\1]({folder}\1)", text)


def tables() -> list[tuple[Any, str, str]]:
    """Return each table with its page and its name there."""
    long, arguments, short = settings_table(), arguments_table(), short_table()
    return [(PAGE, "settings", long), (PAGE, "arguments", arguments), (README, "settings", short)]


def marks(name: str) -> tuple[str, str]:
    """Return the marks before and after a table."""
    origin = "generated by `make configuration`, and compared with the code by tests/docs/test_configuration_page.py"
    return f"<!-- {name}: {origin} -->\n", f"<!-- end of {name} -->"


def main() -> None:
    """Write the tables into their pages."""
    for page, name, table in tables():
        begin, end = marks(name)
        text = page.read_text()
        page.write_text(text[: text.index(begin) + len(begin)] + table + text[text.index(end) :])


if __name__ == "__main__":
    main()
