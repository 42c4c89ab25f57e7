"""Open every page of the documentation site in a headless Chromium, and print what is wrong as JSON.

    python -m support.site_browser FOLDER ADDRESS

Keys: `pages`, `errors` of the console and of requests, `foreign_requests` (to other hosts), `pictures_without_text`,
`wide_pages` (that need horizontal scrolling on a phone), `search_results` (addresses by query) and `backgrounds` (light
and dark). It runs in its own process, because playwright brings an event loop.
"""

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Request, sync_playwright

from support.needs import executable

_QUERIES = ("MLO-301", "configure", "workspace", "MLFLOW_TRACKING_TOKEN_FILE", "gateway")
_BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def main(folder: Path, address: str) -> dict[str, Any]:
    paths = sorted(f"/{path.parent.relative_to(folder)}/".replace("/./", "/") for path in folder.rglob("index.html"))
    findings: dict[str, Any] = {"pages": paths, "errors": [], "foreign_requests": [], "pictures_without_text": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(executable("chromium")), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="light")
        page.on("console", lambda message: _record_console(findings, page, message.type, message.text))
        page.on("pageerror", lambda error: findings["errors"].append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: _record_failure(findings, page, request))
        page.on("request", lambda request: _record_request(findings, address, request.url))
        findings["wide_pages"] = []
        for path in paths:
            page.goto(address + path, wait_until="load")
            unnamed = page.locator("article img:not([alt]), article img[alt='']").count()
            findings["pictures_without_text"] += [path] * unnamed
            if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                findings["wide_pages"].append(path)
        page.set_viewport_size({"width": 1300, "height": 900})
        findings["search_results"] = {query: _search(page, address, query) for query in _QUERIES}
        page.goto(address)
        light = page.evaluate(_BACKGROUND)
        page.locator("label[title='Switch to dark mode']").click()
        findings["backgrounds"] = [light, page.evaluate(_BACKGROUND)]
        browser.close()
    return findings


def _record_console(findings: dict[str, Any], page: Page, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        findings["errors"].append(f"{page.url}: {text}")


def _record_failure(findings: dict[str, Any], page: Page, request: Request) -> None:
    # The next page ends requests of the one before.
    if request.failure != "net::ERR_ABORTED":
        findings["errors"].append(f"{page.url}: {request.url}: {request.failure}")


def _record_request(findings: dict[str, Any], address: str, url: str) -> None:
    if not url.startswith((address, "data:", "blob:")):
        findings["foreign_requests"].append(url)


def _search(page: Page, address: str, query: str) -> list[str]:
    page.goto(address)
    page.locator("input.md-search__input").click()
    page.keyboard.insert_text(query[:-1])
    page.keyboard.type(query[-1])  # the page searches when a key is released
    results = page.locator("a.md-search-result__link")
    results.first.wait_for()
    return [str(href) for href in results.evaluate_all("links => links.map(link => link.href)")]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
