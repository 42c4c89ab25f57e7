"""Resource attributes that name the destination, for a Collector to route by."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.resources import Resource

from mlflow_otlp_exporter._internal.common.attribute_names import EXPERIMENT, EXPERIMENT_ID, RUN_ID, WORKSPACE
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan

_CACHED = 1000


class DestinationResources:
    """Puts destinations into encoded resources.

    Args:
        encoder: Encodes them.
    """

    def __init__(self, encoder: SpanEncoder) -> None:
        self._encoder = encoder
        # By identity, as the encoder keeps them; the object is kept so that its id stays its own.
        self._told: dict[tuple[int, Destination], tuple[Resource, Resource]] = {}

    def telling(self, span: EncodedSpan, resource: Resource, destination: Destination) -> EncodedSpan:
        """A span whose resource says where it goes.

        Args:
            span: The span.
            resource: Its resource.
            destination: Where it goes.
        """
        found = self._told.get((id(resource), destination))
        if found is None:
            said = _said(destination)
            made = Resource({**resource.attributes, **said}, resource.schema_url) if said else resource
            if len(self._told) >= _CACHED:
                self._told.clear()
            found = self._told[id(resource), destination] = (resource, made)
        return span if found[1] is resource else span._replace(resource=self._encoder.resource(found[1]))


def _said(destination: Destination) -> dict[str, Any]:
    found = {
        WORKSPACE: destination.workspace,
        EXPERIMENT: destination.experiment,
        EXPERIMENT_ID: destination.experiment_id,
        RUN_ID: destination.run_id,
    }
    return {name: value for name, value in found.items() if value}
