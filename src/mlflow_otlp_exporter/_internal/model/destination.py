"""Where a trace goes inside MLflow: workspace, experiment and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from mlflow_otlp_exporter._internal.common.attribute_names import EXPERIMENT, EXPERIMENT_ID, RUN_ID, WORKSPACE


class Route(NamedTuple):
    """Where a trace goes inside MLflow; None stands for what the exporter does by default.

    Attributes:
        workspace: The workspace's name.
        experiment: The experiment's name.
        experiment_id: The experiment's id, instead of its name.
        run_id: A run that the trace is linked to.
    """

    workspace: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None

    def inside(self, outer: Route) -> Route:
        """This route where another one holds already; an id or a run of another workspace or experiment is dropped."""
        moved = bool(self.workspace and self.workspace != outer.workspace)
        named = bool(self.experiment or self.experiment_id)
        return Route(
            self.workspace or outer.workspace,
            self.experiment if named else outer.experiment,
            self.experiment_id if named or moved else outer.experiment_id,
            self.run_id if self.run_id or named or moved else outer.run_id,
        )


EXPERIMENT_HEADER = "x-mlflow-experiment-id"


WORKSPACE_HEADER = "x-mlflow-workspace"


RUN_HEADER = "x-mlflow-run-id"


@dataclass(frozen=True)
class Destination:
    """Where a trace goes inside MLflow.

    Attributes:
        workspace: The workspace's name; None for the server's default.
        experiment: The experiment's name.
        experiment_id: The experiment's id, instead of a name.
        run_id: A run that the trace is linked to.
        service_name: The resource's `service.name`, after which an experiment is chosen if none was given.
    """

    workspace: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    service_name: str | None = None

    @property
    def route(self) -> Route:
        """All that a trace's own route could say in its place."""
        return Route(self.workspace, self.experiment, self.experiment_id, self.run_id)

    @property
    def name(self) -> str:
        """Workspace and experiment: what refuses or accepts spans, whatever run they belong to."""
        return f"{self.workspace}/{self.experiment or self.experiment_id}"

    def for_trace(self, attributes: Mapping[str, Any], route: Route | None = None) -> Destination:
        """This destination for a trace: its own route beats what its resource says, which beats what is here.

        Args:
            attributes: The resource's attributes: `mlflow.workspace`, `mlflow.experiment` and so on; `service.name`
                matters if there is no experiment.
            route: Where the trace goes; None for the default.
        """
        own = self.route
        for each in (read_route(attributes), route):
            own = own if each is None else each.inside(own)
        if own.experiment or own.experiment_id:
            return Destination(*own)
        name = str(attributes.get("service.name") or "").strip()
        # `unknown_service` is the SDK's way to say that the app gave no name.
        return Destination(*own, None if not name or name.startswith("unknown_service") else name)

    def headers(self, experiment_id: str | None) -> dict[str, str]:
        """The request headers, with the experiment's id as far as it is known."""
        found = {EXPERIMENT_HEADER: experiment_id, WORKSPACE_HEADER: self.workspace, RUN_HEADER: self.run_id}
        # A name that no header can hold is still sent, so that the server refuses it: a tenant's traces must not go to
        # the default for a mistyped name.
        return {
            name: value if value.isascii() and value.isprintable() else quote(value)
            for name, value in found.items()
            if value
        }


_NAMES = (WORKSPACE, EXPERIMENT, EXPERIMENT_ID, RUN_ID)


def read_route(attributes: Mapping[str, Any] | None) -> Route | None:
    """The route that attributes of a span or resource tell, such as `mlflow.experiment`; None if they tell none."""
    if not attributes or not (
        WORKSPACE in attributes or EXPERIMENT in attributes or EXPERIMENT_ID in attributes or RUN_ID in attributes
    ):
        return None
    found = [str(attributes.get(name) or "").strip() or None for name in _NAMES]
    return Route(*found) if any(found) else None
