"""Where a trace goes inside MLflow: workspace, experiment and run."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from mlflow_otlp_exporter._internal.common.attribute_names import EXPERIMENT, EXPERIMENT_ID, RUN_ID, WORKSPACE


class Route(NamedTuple):
    """Where a trace goes inside MLflow; None stands for the default of the exporter."""

    workspace: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None

    def merge_into(self, outer: "Route") -> "Route":
        """Merge this route into an outer one; ids and runs of another workspace or experiment are dropped."""
        changes_workspace = bool(self.workspace and self.workspace != outer.workspace)
        has_experiment = bool(self.experiment or self.experiment_id)
        return Route(
            self.workspace or outer.workspace,
            self.experiment if has_experiment else outer.experiment,
            self.experiment_id if has_experiment or changes_workspace else outer.experiment_id,
            self.run_id if self.run_id or has_experiment or changes_workspace else outer.run_id,
        )


def plain_experiment_id(experiment_id: str) -> str:
    """`0` for `00` and `+0`: MLflow 3.18 compares ids as texts, and rejects later spans of a trace if they differ."""
    digits = experiment_id.removeprefix("+")
    return (digits.lstrip("0") or "0") if digits.isascii() and digits.isdigit() else experiment_id


EXPERIMENT_HEADER = "x-mlflow-experiment-id"
EXPERIMENT_NAME_HEADER = "x-mlflow-experiment"  # only a gateway reads it
WORKSPACE_HEADER = "x-mlflow-workspace"
RUN_HEADER = "x-mlflow-run-id"
# The longest name of an experiment in MLflow 3.17; ids and workspaces are shorter.
_MAX_NAME_LENGTH = 500
# Control characters, line separators, lone surrogates.
_UNUSABLE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"


def _escape(text: str | None) -> str | None:
    """Escape and cut a name, so that the server rejects it, or creates an experiment of the escaped name.

    Lone surrogates, which UTF-8 does not have, would raise in every header, URL and file; control characters would
    forge log lines.
    """
    if not text or (text.isascii() and text.isprintable() and len(text) <= _MAX_NAME_LENGTH):
        return text
    escaped = re.sub(_UNUSABLE, lambda match: ascii(match.group())[1:-1], text[:_MAX_NAME_LENGTH])
    return escaped[:_MAX_NAME_LENGTH]


class _DestinationFields(NamedTuple):
    workspace: str | None
    experiment: str | None
    experiment_id: str | None
    run_id: str | None
    service_name: str | None
    trace_experiment_id: str | None
    creation: str | None


class Destination(_DestinationFields):
    """Where a trace goes inside MLflow; the workspace None is the server's default.

    `service_name` is the resource's `service.name`, which names the experiment if none is set. `trace_experiment_id` is
    set for traces that MLflow has in another experiment than these settings say. `creation` is `off` if a missing
    experiment must not be created, also by a later run that sends the spans.
    """

    __slots__ = ()

    def __new__(
        cls,
        workspace: str | None = None,
        experiment: str | None = None,
        experiment_id: str | None = None,
        run_id: str | None = None,
        service_name: str | None = None,
        trace_experiment_id: str | None = None,
        creation: str | None = None,
    ) -> "Destination":
        texts = (workspace, experiment, experiment_id, run_id, service_name, trace_experiment_id)
        workspace, experiment, experiment_id, run_id, service_name, trace_experiment_id = map(_escape, texts)
        if experiment_id:
            experiment_id = plain_experiment_id(experiment_id)
        names = workspace, experiment, experiment_id, run_id, service_name, trace_experiment_id
        return super().__new__(cls, *names, creation)

    @property
    def route(self) -> Route:
        return Route(self.workspace, self.experiment, self.experiment_id, self.run_id)

    @property
    def attributes(self) -> dict[str, str]:
        """Attributes of a resource that name the destination, for a Collector or a gateway to route by."""
        return {name: value for name, value in zip(_NAMES, self.route, strict=True) if value}

    @property
    def name(self) -> str:
        """Workspace and experiment, which accept or reject spans regardless of their run."""
        return f"{self.workspace or ''}/{self.trace_experiment_id}" if self.trace_experiment_id else self.label

    @property
    def label(self) -> str:
        """`workspace/experiment` for metrics and tokens; the default workspace is empty."""
        return f"{self.workspace or ''}/{self._experiment_label}"

    @property
    def description(self) -> str:
        """The destination in a message."""
        workspace = f" of workspace {self.workspace}" if self.workspace else ""
        return f"experiment {self._experiment_label}{workspace}"

    @property
    def _experiment_label(self) -> str:
        # The id comes first, because it decides where spans go if both it and a name are set.
        return self.experiment_id or self.experiment or self.service_name or "Default"

    def for_trace(self, attributes: Mapping[str, Any], route: Route | None = None) -> "Destination":
        """Return the destination of a trace: its route overrides the resource's attributes, which override this one."""
        own = self.route
        for override in (read_route(attributes), route):
            own = own if override is None else override.merge_into(own)
        if own.experiment or own.experiment_id:
            return Destination(*own, creation=self.creation)
        name = str(attributes.get("service.name") or "").strip()
        # The SDK uses `unknown_service` if the application has no name.
        service_name = None if not name or name.startswith("unknown_service") else name
        return Destination(*own, service_name, creation=self.creation)

    def headers(self, experiment_id: str | None) -> dict[str, str]:
        """Return the request headers; `experiment_id` is None if it is unknown."""
        values = {EXPERIMENT_HEADER: experiment_id, WORKSPACE_HEADER: self.workspace, RUN_HEADER: self.run_id}
        # A name that no header can hold is sent quoted, so that the server rejects it: a tenant's traces must not go to
        # the default workspace because of a mistyped name.
        return {
            name: value if value.isascii() and value.isprintable() else quote(value)
            for name, value in values.items()
            if value
        }


_NAMES = (WORKSPACE, EXPERIMENT, EXPERIMENT_ID, RUN_ID)
ROUTE_ATTRIBUTES = frozenset(_NAMES)


def read_route(attributes: Mapping[str, Any] | None) -> Route | None:
    """Read the route in attributes of a span or resource, such as `mlflow.experiment`; None without one."""
    if not attributes or ROUTE_ATTRIBUTES.isdisjoint(attributes):
        return None
    values = [None if (value := attributes.get(name)) is None else str(value).strip() or None for name in _NAMES]
    return Route(*values) if any(values) else None
