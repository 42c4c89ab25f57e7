"""Hook of hatchling: the README of the distribution, whose links a package index can follow."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Makes the relative links of README.md absolute, with the address in `[project.urls]`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        repository = metadata["urls"]["Repository"]

        def make_absolute(match: re.Match[str]) -> str:
            view = "raw" if match[1] else "blob"
            return f"{match[1]}[{match[2]}]({repository}/{view}/HEAD/{match[3]})"

        text = _RELATIVE.sub(make_absolute, Path(self.root, "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
