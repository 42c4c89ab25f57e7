"""The format of tests/corpus/truth.json: a field a line (`make format`; `--check` in `make lint`).

python -m support.truth [--check]
"""

import argparse
import json
import sys
from typing import Any

from support.environments import ROOT

FILE = ROOT / "tests" / "corpus" / "truth.json"
_WIDTH = 120


def format_truth(truth: dict[str, dict[str, Any]]) -> str:
    """Return the content of the file: fields in lines of at most 120 characters where their values can be broken."""
    entries = []
    for key, fields in truth.items():
        lines = [_format_field(f"    {json.dumps(name)}: ", value) for name, value in fields.items()]
        entries.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _format_field(start: str, value: Any) -> str:
    line = start + json.dumps(value, ensure_ascii=False)
    if len(line) < _WIDTH or not value or not isinstance(value, (list, dict)):
        return line
    indent = " " * (len(start) - len(start.lstrip()) + 2)
    if isinstance(value, list):
        items = [_format_field(indent, item) for item in value]
        return f"{start}[\n" + ",\n".join(items) + f"\n{indent[2:]}]"
    items = [_format_field(f"{indent}{json.dumps(name)}: ", item) for name, item in value.items()]
    return f"{start}{{\n" + ",\n".join(items) + f"\n{indent[2:]}}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; the exit status says whether it would")
    arguments = parser.parse_args()
    text = FILE.read_text()
    formatted = format_truth(json.loads(text))
    if text != formatted and arguments.check:
        print(f"{FILE.relative_to(ROOT)} is not formatted: run `make format`")
        return 1
    if text != formatted:
        FILE.write_text(formatted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
