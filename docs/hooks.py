"""Hooks of MkDocs: addresses from pyproject.toml, pages outside docs/, and links that leave docs/."""

import os
import posixpath
import re
from importlib.metadata import metadata
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that are not in docs/, because a repository has them elsewhere.
_OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(_ROOT)) for path in _ROOT.glob("examples/**/*.md")),
)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(\))")


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
    """Add the pages outside docs/."""
    for path in _OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(_ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the page of the site, or to the source code."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if uri in _OUTSIDE else f"docs/{uri}")

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        inside = target.removeprefix("docs/")
        if files.get_file_from_path(inside):
            link = posixpath.relpath(inside, posixpath.dirname(uri) or ".")
        elif (_ROOT / target).exists():
            link = f"{config.extra['repository']}/blob/HEAD/{target}"
        else:
            return match[0]  # MkDocs reports it
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    return _LINK.sub(rewrite, markdown)
