"""What becomes of the app's spans before they are sent anywhere, as settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AppSettings:
    """What becomes of the app's spans before they are sent anywhere.

    Attributes:
        enabled: False if nothing is done at all.
        auto_instrument: Whether instrumentations are switched on; or which.
        sampling_ratio: Which part of the traces is taken in.
        noise: Traces that are left out.
        baggage: What is taken from the baggage of incoming requests.
    """

    enabled: bool
    auto_instrument: bool | tuple[str, ...]
    sampling_ratio: float
    noise: tuple[str, ...]
    baggage: tuple[str, ...]
