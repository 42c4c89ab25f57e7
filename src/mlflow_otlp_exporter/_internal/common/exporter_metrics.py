"""Metrics of an exporter: upstream's `otel.sdk.exporter.*` for every version of OpenTelemetry, and own `mlflow_otlp.*`.

Only the metrics API is used. Own metrics are observed: they cost nothing before the application's reader asks for them.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.util.types import AttributeValue

DURATION = "otel.sdk.exporter.operation.duration"
_PORTS = {"http": 80, "https": 443}
_numbers = itertools.count()

OnCounted = Callable[[int, int, "str | None"], None]


class Instrument(NamedTuple):
    """A counter or gauge whose values, with their attributes, are read from a source when a reader asks for them."""

    name: str
    unit: str
    description: str
    read: Callable[[Any], Iterable[tuple[float, Mapping[str, AttributeValue]]]]
    is_counter: bool = False


_Sources = weakref.WeakKeyDictionary[Any, Mapping[str, AttributeValue]]
# The sources of each provider, by the names of their instruments: a second instrument of one name would be a conflict.
# Weak, because a provider lives as long as the process.
_sources: weakref.WeakKeyDictionary[MeterProvider, dict[str, _Sources]] = weakref.WeakKeyDictionary()


def observe(
    provider: MeterProvider, instruments: Iterable[Instrument], source: Any, attributes: Mapping[str, AttributeValue]
) -> None:
    """Report a source with these attributes for as long as it lives."""
    meter = provider.get_meter("mlflow_otlp_exporter")
    sources_by_name = _sources.setdefault(provider, {})
    for instrument in instruments:
        sources = sources_by_name.get(instrument.name)
        if sources is None:
            sources = sources_by_name[instrument.name] = _Sources()
            create = meter.create_observable_counter if instrument.is_counter else meter.create_observable_gauge
            callback = partial(_observe, instrument, sources)
            create(instrument.name, [callback], instrument.unit, instrument.description)
        sources[source] = attributes


def _observe(instrument: Instrument, sources: _Sources, _: CallbackOptions) -> Iterator[Observation]:
    for source, attributes in list(sources.items()):
        with suppress(Exception):  # the next reading has a value again
            for value, more_attributes in list(instrument.read(source)):
                yield Observation(value, {**attributes, **more_attributes})


class ExporterMetrics:
    """Upstream's metrics: counters of exported spans and of spans in flight, and the durations of requests."""

    # Gives durations of requests the attribute `destination`, whose values must be few.
    name_destination: Callable[[Any], str] | None = None

    def __init__(self, provider: MeterProvider, url: str, instruments: Iterable[Instrument] = ()) -> None:
        parts = urlsplit(url)
        self.provider, self._instruments = provider, instruments
        self.attributes: dict[str, AttributeValue] = {
            "otel.component.type": "otlp_http_span_exporter",
            # Not upstream's name: its own exporters in this process use the numbers.
            "otel.component.name": f"mlflow_span_exporter/{next(_numbers)}",
            "server.address": parts.hostname or "",
            "server.port": parts.port or _PORTS.get(parts.scheme, 0),
        }
        meter = provider.get_meter("opentelemetry-sdk")
        # Units and descriptions are upstream's: different ones would create different instruments.
        self._exported = meter.create_counter(
            "otel.sdk.exporter.span.exported",
            "{span}",
            "The number of spans for which the export has finished, either successful or failed.",
        )
        self._inflight = meter.create_up_down_counter(
            "otel.sdk.exporter.span.inflight",
            "{span}",
            "The number of spans which were passed to the exporter, but that have not been exported yet "
            "(neither successful, nor failed).",
        )
        self._duration = meter.create_histogram(
            DURATION, "s", "The duration of exporting a batch of telemetry records."
        )

    def observe(self, source: Any) -> None:
        """Report own metrics of a source, which only a meter provider of the application could refuse."""
        with suppress(Exception):
            observe(self.provider, self._instruments, source, self.attributes)

    def record_start(self, span_count: int) -> OnCounted:
        """Count a batch in flight; call the result with delivered and dropped spans, and the reason of a drop."""
        self._add_inflight(span_count)

        def on_counted(delivered_count: int, dropped_count: int, error_type: str | None) -> None:
            self._add_inflight(-delivered_count - dropped_count)
            if delivered_count:
                self.record_exported(delivered_count)
            if dropped_count:
                self.record_exported(dropped_count, error_type or "shutdown")

        return on_counted

    def record_request(
        self, seconds: float, error_type: str | None, status: int | None, destination: Any = None
    ) -> None:
        """Record the duration of one attempt: with an outage of hours, a batch has none before the outage ends."""
        attributes: dict[str, AttributeValue] = {"error.type": error_type} if error_type else {}
        if error_type and str(status) == error_type:
            attributes["http.response.status_code"] = status or 0
        if self.name_destination is not None:
            attributes["destination"] = self.name_destination(destination)
        with suppress(Exception):
            self._duration.record(seconds, {**self.attributes, **attributes})

    def _add_inflight(self, span_count: int) -> None:
        with suppress(Exception):  # a broken meter provider must not affect spans
            self._inflight.add(span_count, self.attributes)

    def record_exported(self, span_count: int, error_type: str = "") -> None:
        with suppress(Exception):
            attributes = {"error.type": error_type} if error_type else {}
            self._exported.add(span_count, {**self.attributes, **attributes})
