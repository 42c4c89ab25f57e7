"""HTML of `Telemetry` in a notebook: links, counts, and the last trace inside MLflow's own viewer."""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit

from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.config.models import ServerSettings, Settings

# MLflow allows this page, and only this one, inside pages of other origins.
_VIEWER_PATH = "/static-files/lib/notebook-trace-renderer/index.html"
# Without the cookies of the browser (`credentialless`, in Chromium), and without access to the notebook around it. The
# viewer's link to the console opens a tab.
_FRAME = (
    '<iframe src="{url}" style="width:100%;height:500px;border:none" loading="lazy" referrerpolicy="no-referrer" '
    'sandbox="allow-scripts allow-same-origin allow-popups allow-popups-to-escape-sandbox" credentialless></iframe>'
)


def render(target: str, stats: Stats, settings: Settings | None, trace_url: str | None, *, is_closed: bool) -> str:
    """Return the HTML; `trace_url` is that of a trace that MLflow has."""
    state = "closed" if is_closed else "sending to"
    rows = [
        f"<b>MLflow telemetry</b>, {state} {escape(target)}",
        f"{pluralize(stats.delivered, 'span')} delivered, {stats.spooled} spooled, {stats.dropped} dropped",
    ]
    frame = ""
    if trace_url is not None:
        experiment_url = trace_url.partition("?")[0]
        rows.append(f"{_link(experiment_url, 'experiment')}, {_link(trace_url, 'last trace')}")
        if settings is not None and settings.api is not None and not _needs_credentials(settings.api):
            frame = _FRAME.format(url=escape(_viewer_url(settings.api.url, trace_url)))
    return f"<div>{'<br>'.join(rows)}{frame}</div>"


def _link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{text}</a>'


def _needs_credentials(server: ServerSettings) -> bool:
    """Return whether a browser without them would show a login page: then a link is better."""
    secrets = (server.token, server.token_file, server.username, server.credentials, server.credential_provider)
    return any(secrets) or bool(server.client_certificate_file) or bool(server.headers)


def _viewer_url(server_url: str, trace_url: str) -> str:
    path, _, query = urlsplit(trace_url).fragment.partition("?")
    parameters = dict(parse_qsl(query))
    names = {"trace_id": parameters["traceId"], "experiment_id": path.split("/")[2]}
    if "workspace" in parameters:
        names["workspace"] = parameters["workspace"]
    return f"{server_url.rstrip('/')}{_VIEWER_PATH}?{urlencode(names)}"
