"""All that it takes to send something once and ask about it, as an exporter has it, but without its threads."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.static_prefix import with_static_prefix
from mlflow_otlp_exporter._internal.mlflow_api.workspace import with_namespace_workspace
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, Destination
from mlflow_otlp_exporter._internal.transport.authorization import load_credential_provider_session
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from mlflow_otlp_exporter._internal.transport.messages import Transport


@dataclass(frozen=True)
class Clients:
    """Servers and what is done with them.

    Attributes:
        server: The OTLP endpoint's server, whose credentials count.
        traces: The OTLP endpoint.
        api: MLflow's REST side; None if there is none.
        certain: False if `api` is a guess, behind which a Collector may be.
        experiments: Names and ids.
        delivery: What sends.
        destination: Where to by default.
    """

    server: HttpClient
    traces: Transport
    api: Transport | None
    certain: bool
    experiments: ExperimentResolver
    delivery: OTLPClient
    destination: Destination

    def close(self) -> None:
        """Closes the connections."""
        self.server.close()
        each = self.api
        while each is not None:
            if isinstance(each, HttpClient):
                each.close()
            each = getattr(each, "server", None)  # what stands before it


def build_clients(settings: Settings, report: ProblemLog) -> Clients:
    """Puts it together.

    Args:
        settings: All settings.
        report: Where to say what was chosen.

    Raises:
        ConfigurationError: The credentials, or the provider of a session, cannot be used.
    """
    session = load_credential_provider_session(settings.traces)
    server = HttpClient(settings.traces, session)
    same = settings.api is not None and urlsplit(settings.api.url).netloc == urlsplit(settings.traces.url).netloc
    connection = HttpClient(settings.api, session if same else None) if settings.api else None
    traces, api = with_static_prefix(server, connection if settings.is_api_certain else None, lambda _: None)
    api = api or connection
    if settings.namespace is not None and api is not None:
        traces, api, _ = with_namespace_workspace(settings.namespace, traces, api, report)
    certain = settings.is_api_certain
    experiments = ExperimentResolver(api, certain=certain, create=settings.create_experiment, report=report)
    delivery = OTLPClient(
        traces,
        experiments,
        compression=settings.compression,
        report=report,
        experiment_is_set=EXPERIMENT_HEADER in server.header_names,
    )
    destination = Destination(settings.workspace, settings.experiment, settings.experiment_id, settings.run_id)
    return Clients(server, traces, api, certain, experiments, delivery, destination)
