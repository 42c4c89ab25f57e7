"""What waits in memory, as settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BufferSettings:
    """What waits in memory, and for how long.

    Attributes:
        linger: Seconds that a whole trace waits for others to share a request with.
        hold: Seconds that an ended span waits for its trace to be whole, at most.
        buffer_spans: How many spans may wait.
        buffer_bytes: How many bytes of spans, as estimated, may wait.
    """

    linger: float
    hold: float
    buffer_spans: int
    buffer_bytes: int
