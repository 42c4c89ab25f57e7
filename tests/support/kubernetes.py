"""A simulated Kubernetes API, with the namespaces and access reviews that MLflow's plugin requests.

The plugin, its client library and MLflow are real.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.environments import environment, read_lock
from support.mlflow_server import MLflowServer
from support.needs import executable

ALL_VERBS = frozenset({"get", "list", "create", "update"})
SERVER_TOKEN = "token-of-the-mlflow-server"
_LABEL = "mlflow-enabled=true"


@dataclass
class Cluster:
    """The state of the cluster, which tests change while it runs.

    Attributes:
        namespaces: Labels of each namespace.
        granted: Verbs on `experiments` by user and namespace.
        users: The user of each valid token.
        error_status: A status for every access review, as from a failing API server.
        reviews: The access reviews: user, namespace, resource, verb, and whether it was allowed.
    """

    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    granted: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    error_status: int | None = None
    reviews: list[tuple[str, str, str, str, bool]] = field(default_factory=list)

    def review(self, user: str, attributes: Mapping[str, Any]) -> bool:
        """Review an access, and return whether it is allowed."""
        namespace, resource, verb = (str(attributes.get(name)) for name in ("namespace", "resource", "verb"))
        is_known = attributes.get("group") == "mlflow.kubeflow.org" and resource == "experiments"
        allowed = is_known and verb in self.granted.get((user, namespace), frozenset())
        self.reviews.append((user, namespace, resource, verb, allowed))
        return allowed


class _Handler(BaseHTTPRequestHandler):
    """Speaks HTTP 1.0, which closes the connection after each response, so that no thread stays."""

    server: "KubernetesAPI"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if query.get("watch", "").lower() == "true":
            self._watch()
        elif parts.path == "/api/v1/namespaces":
            self._answer(200, self._namespaces(query.get("labelSelector", "")))
        elif parts.path == "/apis/mlflow.kubeflow.org/v1/mlflowconfigs":
            self._answer(200, {"kind": "MLflowConfigList", "metadata": {"resourceVersion": "1"}, "items": []})
        else:
            self._answer(404, {"kind": "Status", "code": 404, "message": f"no {parts.path} here"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cluster, spec = self.server.cluster, body["spec"]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if cluster.error_status is not None:
            self._answer(
                cluster.error_status, {"kind": "Status", "code": cluster.error_status, "message": "etcd is unavailable"}
            )
            return
        user: str | None = None
        if self.path.endswith("/selfsubjectaccessreviews"):
            user = cluster.users.get(token)
        elif self.path.endswith("/subjectaccessreviews") and token == SERVER_TOKEN:
            user = str(spec["user"])
        if user is None:
            self._answer(401, {"kind": "Status", "code": 401, "message": "Unauthorized"})
            return
        allowed = cluster.review(user, spec["resourceAttributes"])
        self._answer(201, {**body, "status": {"allowed": allowed}})

    def _namespaces(self, selector: str) -> dict[str, Any]:
        name, _, value = selector.partition("=")
        items = [
            {"metadata": {"name": namespace, "labels": labels, "resourceVersion": "1"}}
            for namespace, labels in self.server.cluster.namespaces.items()
            if not selector or labels.get(name) == value
        ]
        return {"kind": "NamespaceList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}

    def _watch(self) -> None:
        """Send no event until the server is closed."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.server.closing.wait()

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class KubernetesAPI(ThreadingHTTPServer):
    """The cluster's API on 127.0.0.1."""

    daemon_threads = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = cluster
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="kubernetes-api")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "KubernetesAPI":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        """Write the kubeconfig for the MLflow server."""
        name = {"name": "tests"}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "tests",
                    "clusters": [{**name, "cluster": {"server": self.url}}],
                    "users": [{**name, "user": {"token": SERVER_TOKEN}}],
                    "contexts": [{**name, "context": {"cluster": "tests", "user": "tests"}}],
                }
            )
        )


@contextmanager
def kubernetes_mlflow(
    folder: Path, cluster: Cluster, *, mode: str = "self_subject_access_review", cache_seconds: float = 300.0
) -> Iterator[MLflowServer]:
    """Run a real MLflow server with the real plugin, whose workspaces are the cluster's namespaces.

    `mode` selects the user of the access reviews: the owner of the token, or the user that a proxy names. The plugin
    caches reviews for `cache_seconds`, 300 by default.
    """
    python = environment("mlflow-kubernetes", read_lock("mlflow-kubernetes"), base=executable("python3.12"))
    folder.mkdir(parents=True, exist_ok=True)
    with KubernetesAPI(cluster) as api:
        api.write_kubeconfig(folder / "kubeconfig")
        server = MLflowServer.start(
            folder,
            python=python,
            workspaces=True,
            extra=["--app-name", "kubernetes-auth", "--workspace-store-uri", "kubernetes://"],
            environment={
                "KUBECONFIG": str(folder / "kubeconfig"),
                "MLFLOW_K8S_WORKSPACE_LABEL_SELECTOR": _LABEL,
                "MLFLOW_K8S_AUTH_AUTHORIZATION_MODE": mode,
                "MLFLOW_K8S_AUTH_CACHE_TTL_SECONDS": str(cache_seconds),
            },
        )
        try:
            yield server
        finally:
            server.stop()


def service_account(folder: Path, token: str, namespace: str) -> Path:
    """Create the service account folder of a pod, with the kubelet's layout, so that it can be rotated."""
    folder.mkdir(parents=True, exist_ok=True)
    rotate(folder, token, namespace)
    for name in ("token", "namespace"):
        (folder / name).symlink_to(Path("..data") / name)
    return folder


def rotate(folder: Path, token: str, namespace: str) -> None:
    """Replace all files at once, as the kubelet does."""
    version = len(list(folder.glob("..version-*")))
    version_folder = folder / f"..version-{version}"
    version_folder.mkdir()
    (version_folder / "token").write_text(token)
    (version_folder / "namespace").write_text(namespace)
    link = folder / "..data_tmp"
    link.symlink_to(version_folder.name)
    link.replace(folder / "..data")
