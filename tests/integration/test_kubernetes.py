"""A pod with a service account, and MLflow with Kubernetes permissions: the real plugin, a simulated cluster."""

import base64
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import FlushResult, MLflowSpanExporter, Telemetry, configure
from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckStatus
from mlflow_otlp_exporter._internal.cli.doctor.server_checks import run_checks
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import CREDENTIAL_REJECTED, HINTS
from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS
from support.fast_retries import skip_retry_delays
from support.kubernetes import ALL_VERBS, Cluster, kubernetes_mlflow, rotate, service_account
from support.mlflow_server import MLflowServer
from support.needs import executable
from support.nginx import Nginx, _free_ports
from support.spans import make_spans
from support.traces import make_traces, wait_until

pytestmark = [pytest.mark.matrix, pytest.mark.needs("python3.12")]

CACHE_SECONDS = 2.0
"""For how long the server caches access reviews; 300 s by default."""
OWNER = "owner's token"
HOST = "mlflow.opendatahub.svc"
MANIFEST = Path(__file__).resolve().parents[2] / "examples" / "kubernetes" / "agent.yaml"
WORKSPACE_LABELS = {"mlflow-enabled": "true"}


@dataclass
class Platform:
    """MLflow in a cluster."""

    server: MLflowServer
    cluster: Cluster

    def allow(self, token: str, *verbs: str, namespace: str = "team-a") -> str:
        """Create a token of a new user with permissions for these verbs."""
        self.cluster.users[token] = f"user of {token}"
        self.cluster.granted[f"user of {token}", namespace] = frozenset(verbs or ALL_VERBS)
        return token

    def names(self, experiment: str, namespace: str = "team-a") -> list[str]:
        """Return the names of all traces of an experiment."""
        stored = self.server.experiment(experiment, namespace)
        assert stored is not None
        traces = self.server.search_traces(stored["experiment_id"], namespace)
        return sorted(trace["tags"]["mlflow.traceName"] for trace in traces)


def make_cluster() -> Cluster:
    cluster = Cluster(
        namespaces={
            "team-a": WORKSPACE_LABELS,
            "team-b": WORKSPACE_LABELS,
            "plain": {},
            "kube-system": WORKSPACE_LABELS,
        }
    )
    cluster.users[OWNER] = "owner"
    for namespace in ("team-a", "team-b"):
        cluster.granted["owner", namespace] = ALL_VERBS
    return cluster


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """MLflow that reviews the access of a token's owner."""
    cluster = make_cluster()
    with kubernetes_mlflow(tmp_path_factory.mktemp("by-token"), cluster, cache_seconds=CACHE_SECONDS) as server:
        server.headers = {"Authorization": f"Bearer {OWNER}"}
        yield Platform(server, cluster)


@pytest.fixture(scope="module")
def by_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """MLflow that reviews the access of the user that a proxy names."""
    cluster, folder = make_cluster(), tmp_path_factory.mktemp("by-proxy")
    with kubernetes_mlflow(folder, cluster, mode="subject_access_review", cache_seconds=CACHE_SECONDS) as server:
        server.headers = {"x-remote-user": "owner"}
        yield Platform(server, cluster)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pod's service account in team-a, as set in the environment."""
    folder = service_account(tmp_path / "serviceaccount", "an unknown token", "team-a")
    monkeypatch.setenv("MLFLOW_OTLP_SERVICE_ACCOUNT_DIR", str(folder))
    return folder


class Agent:
    """An application in a pod that makes a trace for each call of `answer()`."""

    def __init__(self, **arguments: Any) -> None:
        self.provider = TracerProvider(resource=Resource({"service.name": "agent"}), shutdown_on_exit=False)
        self.telemetry: Telemetry = configure(tracer_provider=self.provider, **arguments)
        self.names: list[str] = []

    def answer(self) -> None:
        name = f"answer {len(self.names):03}"
        self.names.append(name)
        self.provider.get_tracer("tests").start_span(name).end()

    def close(self) -> FlushResult:
        result = self.telemetry.shutdown(20)
        self.provider.shutdown()
        return result


@pytest.mark.needs("nginx", "openssl")
def test_pod_with_address_and_experiment_only_exports(
    by_token: Platform, pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has https with a certificate of the cluster; token, workspace and CA come from the pod."""
    key, certificate = tmp_path / "tls.key", pod / "service-ca.crt"
    command = [str(executable("openssl")), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={HOST}"]
    subprocess.run([*command, "-addext", f"subjectAltName=DNS:{HOST}"], capture_output=True, check=True)
    (port,) = _free_ports(1)
    block = (
        f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};"
        "location / { proxy_pass {upstream}; proxy_set_header Host localhost; }"
    )
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *arguments, **options: resolve("127.0.0.1" if host == HOST else host, *arguments, **options),
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{HOST}:{port}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "in a pod")
    rotate(pod, by_token.allow("the pod's token"), "team-a")
    with Nginx(tmp_path / "nginx", block, by_token.server.uri):
        agent = Agent()
        agent.answer()
        assert agent.telemetry.flush(20) == FlushResult(delivered=1)
        assert "workspace=team-a" in (agent.telemetry.trace_url() or "")
        agent.close()
    assert by_token.names("in a pod") == ["answer 000"]


Fix = Callable[[Platform, Path], None]


@dataclass(frozen=True)
class Failure:
    """A failure of an export.

    Attributes:
        log_parts: Expected parts of the log: the server's message, and the fix.
        workspace: The requested workspace; None for the namespace.
        experiment_id: The id of an experiment, instead of a name; -1 for the correct one.
        token: The token in the pod's folder.
        settings: Further environment variables.
        cause: Causes the failure before the export.
        fix: Fixes it after the failed export.
    """

    log_parts: tuple[str, ...]
    workspace: str | None = "team-a"
    experiment_id: int | None = None
    token: str = "good"
    settings: Mapping[str, str] | None = None
    cause: Callable[[Platform], None] = lambda _: None
    fix: Fix | None = None


def write_valid_token(platform: Platform, pod: Path) -> None:
    rotate(pod, platform.allow("another token"), "team-a")


def deny(platform: Platform) -> None:
    platform.allow("denied", "get", "create")


def grant(platform: Platform, pod: Path) -> None:
    platform.allow("denied")


def allow_only_update(platform: Platform) -> None:
    platform.allow("update only", "update")


def fail_access_reviews(status: int) -> Callable[[Platform], None]:
    def set_status(platform: Platform) -> None:
        platform.cluster.error_status = status

    return set_status


def restore_access_reviews(platform: Platform, pod: Path) -> None:
    platform.cluster.error_status = None


CREDENTIALS, REJECTED = HINTS[MessageCode.UNAUTHENTICATED].fix, CREDENTIAL_REJECTED.fix
NO_WORKSPACE = HINTS[MessageCode.WORKSPACE_NOT_FOUND].fix
NO_EXPERIMENT = HINTS[MessageCode.EXPERIMENT_NOT_FOUND].fix
FAILURES = {
    "no such namespace": Failure(("404: Workspace 'nope' not found in the Kubernetes cluster", NO_WORKSPACE), "nope"),
    "excluded namespace": Failure(("404: Workspace 'kube-system' not found", NO_WORKSPACE), "kube-system"),
    "default": Failure(("404: Workspace 'default' not found", NO_WORKSPACE), "default"),
    "unlabelled namespace": Failure(("'plain'", "mlflow-enabled=true", NO_WORKSPACE), "plain"),
    "unknown experiment": Failure(("404: No Experiment with id=999 exists", NO_EXPERIMENT), experiment_id=999),
    "experiment of another": Failure(("404: No Experiment with id=0 exists", NO_EXPERIMENT), experiment_id=0),
    "denied": Failure(
        ("403: Permission denied for requested operation", HINTS[MessageCode.PERMISSION_DENIED].fix),
        token="denied",
        cause=deny,
        fix=grant,
    ),
    "update only, by name": Failure(
        ("403: Permission denied", "(or `experiment_id=`) instead of a name"),
        token="update only",
        cause=allow_only_update,
        fix=write_valid_token,
    ),
    "unknown or expired token": Failure(
        ("401: Authentication with the Kubernetes API failed", "may be invalid or expired", REJECTED, "token file"),
        token="expired",
        fix=write_valid_token,
    ),
    "no credential": Failure(
        ("401: Missing Authorization header", CREDENTIALS, "credentials: none", "MLFLOW_TRACKING_AUTH=kubernetes"),
        settings={"MLFLOW_TRACKING_AUTH": ""},
    ),
    "user and password": Failure(
        ("401: Authorization header must be in the format 'Bearer <token>'", REJECTED, "user ada"),
        settings={"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "planted"},
    ),
    "cluster answers 503, with an id": Failure(
        ("500: Failed to perform Kubernetes authorization check: (503)",),
        experiment_id=-1,
        token="good while 503, with an id",
        cause=fail_access_reviews(503),
        fix=restore_access_reviews,
    ),
    **{
        f"cluster answers {status}": Failure(
            (
                f"500: Failed to perform Kubernetes authorization check: ({status})",
                HINTS[MessageCode.AUTHORIZATION_CHECK_FAILED].fix,
            ),
            token=f"good while {status}",
            cause=fail_access_reviews(status),
            fix=restore_access_reviews,
        )
        for status in (429, 500, 503)
    },
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_rejected_spans_are_queued_and_explained(
    failure: Failure,
    by_token: Platform,
    pod: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    experiment = f"of {request.node.callspec.id}"
    experiment_id = by_token.server.create_experiment(experiment, "team-a")
    if failure.token.startswith("good"):
        by_token.allow(failure.token)
    rotate(pod, failure.token, "team-a")
    variables = {"MLFLOW_TRACKING_AUTH": "kubernetes", **(failure.settings or {})}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    failure.cause(by_token)
    number = {None: None, -1: experiment_id}.get(failure.experiment_id, failure.experiment_id)
    destination: Any = {"experiment": experiment} if number is None else {"experiment_id": number}
    exporter = MLflowSpanExporter(
        tracking_uri=by_token.server.uri, workspace=failure.workspace, timeout=6, **destination
    )
    try:
        assert exporter.export(make_spans("answer")) is SpanExportResult.FAILURE
        log = "\n".join(record.getMessage() for record in caplog.records)
        assert [part for part in failure.log_parts if part not in log] == []
        assert exporter.stats().dropped == 0
        if failure.fix:
            failure.fix(by_token, pod)
            wait_until_delivered(exporter)
            assert by_token.names(experiment) == ["answer"]
    finally:
        by_token.cluster.error_status = None
        exporter.shutdown(500)


def wait_until_delivered(exporter: MLflowSpanExporter) -> None:
    """Wait until the server's cache has expired and the spans are delivered."""
    with skip_retry_delays(exporter, 0.2):
        wait_until(lambda: exporter.stats().delivered, 60)


def test_invalid_workspace_of_a_span_is_explained(
    by_token: Platform, pod: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A name in a span's attributes that no setting would accept."""
    rotate(pod, by_token.allow("good"), "team-a")
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes-namespaced")
    agent = Agent(tracking_uri=by_token.server.uri, experiment="of tenants")
    attributes = {"mlflow.workspace": "Team A!", "mlflow.experiment_id": "1"}
    agent.provider.get_tracer("tests").start_span("elsewhere", attributes=attributes).end()
    agent.answer()
    assert agent.telemetry.flush(20) == FlushResult(delivered=1, spooled=1)
    assert "400: Workspace name 'Team A!'" in caplog.text
    assert NO_WORKSPACE in caplog.text
    agent.telemetry.shutdown(0.5)
    agent.provider.shutdown()


def test_namespace_without_workspace_is_explained(
    by_token: Platform, pod: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No workspace is requested, the server requires one, and the log states the reason."""
    rotate(pod, by_token.allow("good"), "plain")
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
    exporter = MLflowSpanExporter(tracking_uri=by_token.server.uri, experiment="any", timeout=10)
    assert exporter.export(make_spans("answer")) is SpanExportResult.FAILURE
    assert "the pod's namespace 'plain' is not a workspace (404: Workspace 'plain' not found" in caplog.text
    assert "400: Workspace context is required for this request." in caplog.text
    exporter.shutdown(500)


def test_cached_permissions_of_the_server_cost_no_span(
    by_token: Platform, pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revoked token remains valid for a while; a new permission becomes valid late."""
    rotate(pod, by_token.allow("revoked"), "team-a")
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
    by_token.server.create_experiment("cached", "team-a")
    agent = Agent(tracking_uri=by_token.server.uri, experiment="cached")
    agent.answer()
    assert agent.telemetry.flush().delivered == 1
    del by_token.cluster.users["revoked"]
    pause = threading.Event()
    pause.wait(CACHE_SECONDS + 0.1)
    agent.answer()
    assert agent.telemetry.flush(1).delivered == 0
    rotate(pod, by_token.allow("new permission", "get"), "team-a")
    assert agent.telemetry.flush(1).delivered == 0
    by_token.allow("new permission")
    # The spans are on disk by now, and are sent with the next request.
    number = by_token.server.experiment("cached", "team-a")
    assert number is not None
    for _ in range(40):
        agent.telemetry.flush(0.5)
        if len(by_token.server.search_traces(number["experiment_id"], "team-a")) == len(agent.names):
            break
        pause.wait(0.25)
    assert agent.close().dropped == 0
    assert by_token.names("cached") == agent.names


ROTATIONS = 4
Condition = Callable[[], bool]


def rotate_while_exporting(agent: Agent, rotations: Iterator[Condition]) -> None:
    """Make traces while the token changes; each change waits for the condition of the previous one."""
    stop, pause = threading.Event(), threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            agent.answer()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for condition in rotations:
            for _ in range(1200):
                if condition():
                    break
                pause.wait(0.05)
            else:
                pytest.fail("no effect of a change of the token")
    finally:
        stop.set()
        worker.join()


def one_more(status: int, statuses: Callable[[], list[int]]) -> Condition:
    """Return the condition that the server has sent one more response with this status."""
    before = statuses().count(status)
    return lambda: statuses().count(status) > before


def test_token_rotation_with_token_reviews_costs_no_span(
    by_token: Platform, pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes-namespaced")
    rotate(pod, by_token.allow("token 0"), "team-a")
    statuses = by_token.server.statuses

    def rotations() -> Iterator[Condition]:
        yield one_more(200, statuses)
        for number in range(1, ROTATIONS):
            del by_token.cluster.users[f"token {number - 1}"]
            if number % 2:
                yield one_more(401, statuses)  # the old token becomes invalid before the new one exists
            rotate(pod, by_token.allow(f"token {number}"), "team-a")
            yield one_more(200, statuses)

    agent = Agent(tracking_uri=by_token.server.uri, experiment="rotated")
    rotate_while_exporting(agent, rotations())
    result = agent.close()
    assert (result.dropped, result.pending) == (0, 0)
    assert by_token.names("rotated") == agent.names


@pytest.mark.needs("nginx")
def test_token_rotation_behind_a_proxy_costs_no_span(
    by_proxy: Platform, pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy checks the tokens and names the user, whose access MLflow reviews."""
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes-namespaced")
    by_proxy.cluster.granted["agent", "team-a"] = ALL_VERBS

    def server_block_for(token: str) -> str:
        return (
            f'set $who ""; if ($http_authorization = "Bearer {token}") {{ set $who agent; }}'
            'if ($who = "") { return 401 "who are you?"; }'
            "location / { proxy_pass {upstream}; proxy_set_header x-remote-user $who; }"
        )

    rotate(pod, "token 0", "team-a")
    with Nginx(tmp_path / "nginx", server_block_for("token 0"), by_proxy.server.uri) as proxy:

        def rotations() -> Iterator[Condition]:
            yield one_more(200, proxy.statuses)
            for number in range(1, ROTATIONS):
                proxy.reload(server_block_for(f"token {number}"))
                if number % 2:
                    yield one_more(401, proxy.statuses)
                rotate(pod, f"token {number}", "team-a")
                yield one_more(200, proxy.statuses)

        agent = Agent(tracking_uri=proxy.uri, experiment="rotated")
        rotate_while_exporting(agent, rotations())
        result = agent.close()
        assert (result.dropped, result.pending) == (0, 0)
        assert by_proxy.names("rotated") == agent.names


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("", "401: Missing required 'x-remote-user' header for SubjectAccessReview mode."),
        ("stranger", "403: Permission denied for requested operation."),
    ],
)
def test_proxy_without_user_or_with_unknown_user_is_explained(
    user: str, message: str, by_proxy: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"x-remote-user": user} if user else {}
    uri = by_proxy.server.uri
    exporter = MLflowSpanExporter(tracking_uri=uri, workspace="team-a", experiment_id=1, headers=headers, timeout=10)
    assert exporter.export(make_spans("answer")) is SpanExportResult.FAILURE
    assert message in caplog.text
    assert exporter.stats().dropped == 0
    exporter.shutdown(500)


@pytest.mark.parametrize(
    ("verbs", "attached"), [(("get", "update"), (1, 0)), (("update",), (0, 1))], ids=["reads", "only-writes"]
)
def test_attachments_and_metadata_need_read_permission(
    by_token: Platform, caplog: pytest.LogCaptureFixture, verbs: tuple[str, ...], attached: tuple[int, int]
) -> None:
    """With a token that may only write, spans are stored without attachments and prompts."""
    name = f"with attachments, {' '.join(verbs)}"
    number = by_token.server.create_experiment(name, "team-a")
    picture = base64.b64encode(bytes(range(256)) * 50).decode()
    attributes = {
        "input.value": f"data:image/png;base64,{picture}",
        "mlflow.traceTag.mlflow.linkedPrompts": '[{"name": "greeting", "version": "1"}]',
    }
    exporter = MLflowSpanExporter(
        tracking_uri=by_token.server.uri,
        experiment_id=number,
        workspace="team-a",
        credentials=by_token.allow(f"may-{'-'.join(verbs)}", *verbs),
        attachments=True,
        trace_info=True,
    )
    assert exporter.export(make_traces(1, attributes=lambda *_: attributes)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    stats = exporter.stats()
    assert (
        (stats.attachments_uploaded, stats.attachments_failed)
        == (stats.metadata_updates, stats.metadata_updates_dropped)
        == attached
    )
    assert by_token.names(name) == ["root 0"]
    codes = [line.getMessage()[-len("[MLO-516]") :] for line in caplog.records]
    assert codes == ([] if "get" in verbs else ["[MLO-516]", "[MLO-514]"])


def test_example_role_grants_the_reviewed_verbs(by_token: Platform) -> None:
    token = by_token.allow("verbs")
    exporter = MLflowSpanExporter(
        tracking_uri=by_token.server.uri,
        workspace="team-a",
        experiment="verbs",
        create_experiment=True,
        credentials=token,
    )
    assert exporter.export(make_spans("answer")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    reviewed = {(resource, verb) for user, _, resource, verb, _ in by_token.cluster.reviews if user == "user of verbs"}
    # `list` is for the closest name in the warning about the new experiment.
    assert reviewed == {("experiments", verb) for verb in ("get", "create", "list", "update")}
    documents = yaml.safe_load_all(MANIFEST.read_text())
    (rules,) = [document["rules"] for document in documents if document["kind"] == "Role"]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert reviewed <= granted


@pytest.mark.parametrize(
    ("verbs", "namespace", "step", "code"),
    [
        (("get", "create", "update"), "team-a", None, None),
        (("update",), "team-a", None, None),
        (("get", "create"), "team-a", "write", MessageCode.PERMISSION_DENIED),
        ((), "team-a", "credentials", MessageCode.UNAUTHENTICATED),
        (("get", "create", "update"), "plain", "workspace", MessageCode.WORKSPACE_REQUIRED),
    ],
)
def test_doctor_names_the_failed_step(
    verbs: tuple[str, ...],
    namespace: str,
    step: str | None,
    code: MessageCode | None,
    by_token: Platform,
    tmp_path: Path,
) -> None:
    token = f"doctor, {verbs} in {namespace}"
    if verbs:
        by_token.allow(token, *verbs, namespace=namespace)
    folder = service_account(tmp_path / "serviceaccount", token, namespace)
    number = by_token.server.create_experiment(token, "team-a")
    variables = {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": by_token.server.uri,
        "MLFLOW_TRACKING_AUTH": "kubernetes",
        "MLFLOW_OTLP_SERVICE_ACCOUNT_DIR": str(folder),
        "MLFLOW_EXPERIMENT_ID": number,
    }
    failed = [result for result in run_checks({}, variables, DEFAULTS) if result.status is CheckStatus.FAILED]
    assert [(result.step, result.code) for result in failed] == ([(step, code)] if step else [])
