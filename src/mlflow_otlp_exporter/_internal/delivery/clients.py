"""The HTTP clients of one exporter, as the pipeline and the command line use them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mlflow_otlp_exporter._internal.common.hints import add_fix, hint_for
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.credentials import describe_token, has_credential
from mlflow_otlp_exporter._internal.config.models import SettingGroup, Settings
from mlflow_otlp_exporter._internal.config.service_account import ServiceAccount
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.server import identify_server
from mlflow_otlp_exporter._internal.mlflow_api.static_prefix import with_static_prefix
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, EXPERIMENT_NAME_HEADER, Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.client import HttpClient, Session
from mlflow_otlp_exporter._internal.transport.credential_provider import load_credential_provider_session
from mlflow_otlp_exporter._internal.transport.http_types import Transport

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.mlflow_api.workspace import NamespaceWorkspace


class Clients(NamedTuple):
    """What it takes to send spans and to call the REST API, without threads."""

    server: HttpClient  # of the OTLP endpoint
    api_server: HttpClient | None  # of MLflow's REST API
    traces: Transport  # the OTLP endpoint
    api: Transport | None  # MLflow's REST API
    is_api_certain: bool  # false if `api` is a guess, behind which a Collector may be
    experiments: ExperimentResolver
    otlp: OTLPClient
    destination: Destination
    namespace: "NamespaceWorkspace | None"  # None outside of Kubernetes

    def close(self) -> None:
        self.server.close()
        if self.api_server is not None:
            self.api_server.close()


def build_clients(
    settings: Settings,
    problem_log: ProblemLog,
    *,
    session: Session | None = None,
    on_endpoint_moved: Callable[[str], None] = lambda _: None,
) -> Clients:
    """Build the clients; raises ConfigurationError if the credentials or the session provider are unusable."""
    session = session or load_credential_provider_session(settings.traces)
    server = HttpClient(settings.traces, session)
    # A user's session may sign requests or hold proxies for this server, not for another one.
    api_server = HttpClient(settings.api, session if settings.has_same_server else None) if settings.api else None
    traces, api = with_static_prefix(server, api_server if settings.is_api_certain else None, on_endpoint_moved)
    api, namespace = api or api_server, None
    if settings.namespace is not None and api is not None:
        from mlflow_otlp_exporter._internal.mlflow_api.workspace import with_namespace_workspace  # only in pods

        traces, api, namespace = with_namespace_workspace(settings.namespace, traces, api, problem_log)
    experiments = ExperimentResolver(
        api, certain=settings.is_api_certain, create=settings.create_experiment, problem_log=problem_log
    )
    otlp = OTLPClient(
        traces,
        experiments,
        compression=settings.compression,
        problem_log=problem_log,
        experiment_is_set=not server.header_names.isdisjoint((EXPERIMENT_HEADER, EXPERIMENT_NAME_HEADER)),
        # An OTLP endpoint may be a Collector's.
        identify=partial(identify_server, api) if api and settings.traces.group is SettingGroup.MLFLOW else None,
    )
    names = settings.workspace, settings.experiment, settings.experiment_id, settings.run_id
    destination = Destination(*names, creation=None if settings.create_experiment else "off")
    return Clients(server, api_server, traces, api, settings.is_api_certain, experiments, otlp, destination, namespace)


def format_outcome(outcome: ExportOutcome, server: HttpClient, settings: Settings) -> str:
    """Return an outcome as a message: address, the server's message, the credentials if rejected, fix and code."""
    message = f"{server.address}: {outcome.message}"
    if outcome.cause is FailureKind.CREDENTIALS and outcome.status != 407:  # the proxy's
        message += f"; credentials: {server.credentials}{describe_token(server.credentials)}"
        if server.unused_variables:
            message += f"; not used, because set for another server: {', '.join(server.unused_variables)}"
        in_pod = settings.traces.group is SettingGroup.MLFLOW and ServiceAccount.read(settings.service_account_dir)
        if in_pod and not has_credential(server.credentials):
            message += "; MLFLOW_TRACKING_AUTH=kubernetes would send the token of the pod's service account"
    variable, is_sent = settings.traces.url_variable, has_credential(server.credentials)
    return add_fix(outcome.code, message, hint_for(outcome.code, server.url, variable, has_credential=is_sent))
