"""Where a span context has what the app's thread asks it for at each start and end.

By OpenTelemetry's API it is a tuple of trace id, span id, `is_remote`, flags, state and validity; the properties of
these names say no more than that, and cost five times as much, six times a span.
"""

from __future__ import annotations

TRACE_ID, IS_REMOTE, TRACE_FLAGS = 0, 2, 3
