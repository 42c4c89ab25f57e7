"""Hooks of MkDocs: addresses from pyproject.toml, files outside docs/, links that leave docs/, and `show` comments."""

import os
import posixpath
import re
from importlib.metadata import metadata
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = "src/mlflow_otlp_exporter/_internal/cli/"
# Pages and downloads of the site that are not in docs/, because a repository has them elsewhere. A reader of the site
# who has only the installed package must reach every file that a page names.
_OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(
        str(path.relative_to(_ROOT))
        for folder in ("examples", f"{_PACKAGE}collector_configs")
        for path in sorted((_ROOT / folder).rglob("*"))
        if path.suffix in {".json", ".md", ".py", ".toml", ".yaml"}
    ),
)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(\))")
# `<!-- show: agent.yaml -->`: the site shows the file here. GitHub shows nothing; the text has a link to the file.
_SHOW = re.compile(r"^<!-- show: (\S+) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the addresses of the site and of the source code."""
    pairs = metadata("mlflow-otlp-exporter").get_all("Project-URL", [])
    urls = dict(pair.split(", ") for pair in pairs)
    config.site_url = os.environ.get("READTHEDOCS_CANONICAL_URL", urls["Documentation"])
    # Not `repo_url`: Material would ask GitHub for the number of stars from each reader's browser.
    config.extra["repository"] = urls["Repository"]
    config.extra["social"] = [{"icon": "fontawesome/brands/git-alt", "link": urls["Repository"], "name": "Source code"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/."""
    for path in _OUTSIDE:
        files.append(File.generated(config, path.removeprefix(_PACKAGE), abs_src_path=str(_ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the file of the site, or to the source code; show files."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if uri in _OUTSIDE else f"docs/{uri}")

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        inside = target.removeprefix("docs/").removeprefix(_PACKAGE)
        if files.get_file_from_path(inside):
            link = posixpath.relpath(inside, posixpath.dirname(uri) or ".")
        elif (_ROOT / target).exists():
            link = f"{config.extra['repository']}/blob/HEAD/{target}"
        else:
            return match[0]  # MkDocs reports it
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    def show(match: re.Match[str]) -> str:
        path = _ROOT / posixpath.normpath(posixpath.join(folder, match[1]))
        block = f"```{path.suffix[1:]}\n{path.read_text()}```"
        return f'??? example "{path.name}"\n' + "\n".join(f"    {line}".rstrip() for line in block.splitlines())

    return _SHOW.sub(show, _LINK.sub(rewrite, markdown))
