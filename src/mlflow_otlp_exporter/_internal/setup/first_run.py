"""Lines on stderr where a person is looking: where traces go, and links to the experiment and to the first trace.

Nothing here makes a request. The links follow from the thread that delivered the first spans, which has looked up the
experiment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import log_exception
from mlflow_otlp_exporter._internal.config.describe import describe_target
from mlflow_otlp_exporter._internal.config.models import AppSettings
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan

# Set in CI and in pods, where a terminal may be attached but no person reads it.
_UNATTENDED_VARIABLES = ("CI", "KUBERNETES_SERVICE_HOST")
_printed_lines: set[str] = set()


def announce(pipeline: Pipeline, app: AppSettings) -> None:
    """Print where traces go, and let the first delivery print the links; never raises."""
    try:
        if app.verbose or (app.verbose is None and _is_watched()):
            target = describe_target(pipeline.settings)
            line = f"Sending traces to {target} (MLFLOW_OTLP_VERBOSE=false hides this line)"
            if line not in _printed_lines and (app.verbose or _claim_terminal()):
                _printed_lines.add(line)  # also known to forked children
                _print(line)
                _FirstDelivery(pipeline)
    except BaseException as error:
        if must_propagate(error):
            raise
        log_exception(error, "print where traces go")


class _FirstDelivery:
    """Prints the links once; then the pipeline has its own callback back."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._pid = pipeline, os.getpid()
        self._on_delivered = pipeline.retry_sender.on_delivered
        pipeline.retry_sender.on_delivered = self._print_links

    def _print_links(self, destination: Destination, spans: Sequence[EncodedSpan]) -> None:
        sender, requests = self._pipeline.retry_sender, self._pipeline.work_queue.in_progress()
        is_first = sender.on_delivered == self._print_links and os.getpid() == self._pid
        if any(request.destination == destination and request.future.label for request in requests):
            is_first = False  # the spans of another run
        else:
            sender.on_delivered = self._on_delivered
        self._on_delivered(destination, spans)
        try:
            api = self._pipeline.settings.api
            if is_first and api is not None and spans:
                _print(f"Experiment in MLflow: {self._pipeline.console_url(destination)}")
                _print(f"First trace: {self._pipeline.console_url(destination, spans[0].trace_id)}")
        except Exception as error:  # noqa: BLE001 - the spans are delivered
            log_exception(error, "print the link of a trace")


def is_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython") if "ipykernel" in sys.modules else None
    get_ipython = getattr(ipython, "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


def _is_watched() -> bool:
    if any(os.environ.get(name) for name in _UNATTENDED_VARIABLES):
        return False
    return is_notebook() or _terminal() is not None


def _descriptor() -> int | None:
    """Return the file descriptor of stderr."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # None under pythonw, closed, or an object without descriptor
        return None


def _terminal() -> int | None:
    """Return the file descriptor of stderr if it is a terminal."""
    descriptor = _descriptor()
    return descriptor if descriptor is not None and os.isatty(descriptor) else None


def _claim_terminal() -> bool:
    """Return whether no other process of the process group has printed, as other workers of a web server."""
    descriptor = _terminal()
    if descriptor is None or is_notebook() or not hasattr(os, "getpgrp"):
        return True
    import fcntl

    try:
        # Held until this process ends. The position is the group's, since several groups share a terminal.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, os.getpgrp())
    except BlockingIOError:
        return False
    except OSError:  # a terminal without locks
        return True
    return True


def _print(line: str) -> None:
    # A notebook's stream shows the line below the cell; its descriptor is that of the terminal behind the server.
    descriptor = None if is_notebook() else _descriptor()
    try:
        if descriptor is not None:
            # Not through the stream: a thread that holds its lock when the interpreter exits would abort the process,
            # and a line that stays in the buffer, because the descriptor was closed, would change its exit status.
            os.write(descriptor, f"{line}\n".encode(errors="replace"))
        elif sys.stderr is not None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
    except (OSError, ValueError):  # closed meanwhile
        return
