"""Run `quickstart.py` against a real MLflow server, and print the trace that MLflow returns.

The trace at the end comes from MLflow's REST API, not from the app: it shows what the server has stored. The server
runs in this interpreter's environment, listens only on 127.0.0.1, keeps its data in one folder (`.demo/` at the root of
the repository) and is stopped at the end. In a terminal, the server runs until Ctrl-C, so that you can open the trace
in the console.

    python examples/demo.py [--data FOLDER] [--port PORT]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
EXPERIMENT = "quickstart"  # the name in quickstart.py
START_LIMIT = 120.0  # seconds; the first start creates the tables of the database
QUICKSTART_LIMIT = 60.0
POLL = 0.05

# Settings of the user's shell must not redirect any part of the demo, and must not make it contact other servers.
FOREIGN = re.compile(r"(?i)_?(MLFLOW|OTEL|OPENINFERENCE|LANGCHAIN|LANGSMITH)_|(https?|all|no)_proxy$")
SERVER_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Without this, MLflow starts eight more processes for judges and scheduled jobs. The demo needs none of them.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # MLflow downloads a price list while it stores the first span of a model, and the app waits for it (six seconds
    # without a network). With an empty value, MLflow uses its built-in list.
    "MLFLOW_MODEL_CATALOG_URI": "",
}


class DemoError(Exception):
    """A step of the demo failed. The message is printed for the user."""


# --- the server ---


@dataclass(frozen=True)
class Server:
    """A running MLflow server, with the REST calls that the demo needs."""

    url: str
    process: subprocess.Popen[bytes]
    # The server is on the loopback interface, which a proxy could not reach.
    opener: urllib.request.OpenerDirector = field(
        default_factory=lambda: urllib.request.build_opener(urllib.request.ProxyHandler({}))
    )

    def get(self, path: str, *, body: dict[str, Any] | None = None, timeout: float = 10.0) -> str:
        """Call the server: POST with a body, GET without.

        Args:
            path: Path and query, with the leading slash.
            body: JSON body of the request.
            timeout: Socket timeout in seconds.

        Returns:
            The body of a 2xx response.

        Raises:
            DemoError: No response, or not a 2xx response. Its cause is urllib's error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=timeout) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            content = error.read(300).decode(errors="replace")
            raise DemoError(f"MLflow answered {error.code} to {path}: {content}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"MLflow did not answer to {path}: {error}") from error

    def find_experiment_id(self) -> str | None:
        """Return the id of the quickstart's experiment, or None before its first run."""
        try:
            answer = self.get(f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}")
        except DemoError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
                return None
            raise
        return str(json.loads(answer)["experiment"]["experiment_id"])

    def find_newest_trace(self) -> dict[str, Any] | None:
        """Return the quickstart's newest trace in MLflow's list of traces, or None."""
        experiment = self.find_experiment_id()
        if experiment is None:
            return None
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        search = {"locations": [place], "max_results": 1, "order_by": ["timestamp_ms DESC"]}
        traces = json.loads(self.get("/api/3.0/mlflow/traces/search", body=search)).get("traces", [])
        return dict(traces[0]) if traces else None

    def get_spans(self, trace_id: str) -> list[Span]:
        """Return the stored spans of a trace, ordered by start time."""
        answer = json.loads(self.get(f"/api/3.0/mlflow/traces/get?trace_id={trace_id}"))
        return sorted((Span.read(span) for span in answer["trace"]["spans"]), key=lambda span: span.start)

    def console_url(self, experiment_id: str, trace_id: str) -> str:
        """Return the address of the trace in MLflow's console."""
        trace = f"selectedEvaluationId={trace_id}&traceId={trace_id}"  # same form as trace_url()
        return f"{self.url}/#/experiments/{experiment_id}/traces?{trace}"


@contextlib.contextmanager
def run_mlflow_server(data: Path, preferred_port: int) -> Iterator[Server]:
    """Start MLflow, wait until it answers, and always stop it with all its children.

    Args:
        data: Folder of the database, the artifacts and the log.
        preferred_port: The port to listen on if it is free; 0 for any.

    Yields:
        The running server.

    Raises:
        DemoError: MLflow does not start.
    """
    port = find_free_port(preferred_port)
    log = data / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    # The path is relative to the working folder, so that spaces and percent signs need no escaping.
    command += ["--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db"]
    say(f"starting MLflow on {HOST}:{port}, data in {data} ...", end=" ")
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=data,
            env=make_environment() | SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # In its own process group, the server can be ended with its children, and Ctrl-C reaches only the demo.
            start_new_session=True,
        )
        try:
            server = Server(f"http://{HOST}:{port}", process)
            wait_until_ready(server)
            say(f"version {server.get('/version').strip()} ready after {time.monotonic() - start:.1f} s")
            yield server
        finally:
            stop(process)


def wait_until_ready(server: Server) -> None:
    """Poll the server until it answers. Raise DemoError if it ended or takes too long."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise DemoError(f"MLflow ended with exit code {server.process.returncode} instead of starting")
        with contextlib.suppress(DemoError):
            server.get("/health", timeout=1.0)
            return
        time.sleep(POLL)
    raise DemoError(f"MLflow was not ready after {START_LIMIT:.0f} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its group: first with SIGTERM, then with SIGKILL."""
    # Ignore a second Ctrl-C, which would leave the server running.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def find_free_port(preferred: int) -> int:
    """Return the preferred port if it is free, else a port that the system chooses."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            # The server sets the same option: connections of a demo that has just ended do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise DemoError(f"no free port on {HOST}")


def make_environment() -> dict[str, str]:
    """Return the environment without settings that would change the demo."""
    variables = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return variables | {"NO_PROXY": HOST}


# --- the app ---


def run_quickstart(server: Server) -> None:
    """Run quickstart.py like a user, with only the tracking URI set.

    Args:
        server: Receives the trace.

    Raises:
        DemoError: quickstart.py fails or hangs.
    """
    say("running examples/quickstart.py ...", end=" ")
    start = time.monotonic()
    try:
        process = subprocess.run(
            [sys.executable, str(HERE / "quickstart.py")],
            env=make_environment() | {"MLFLOW_TRACKING_URI": server.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=QUICKSTART_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"quickstart.py did not end within {QUICKSTART_LIMIT:.0f} s") from error
    if process.returncode != 0:
        raise DemoError(f"quickstart.py ended with exit code {process.returncode}:\n{process.stderr.strip()}")
    say(f"done after {time.monotonic() - start:.1f} s")
    say()
    for line in (process.stdout + process.stderr).splitlines():
        say(f"    {line}")
    say()


def wait_for_trace(server: Server, *, before: str | None) -> dict[str, Any]:
    """Wait up to 10 s for a new trace.

    Args:
        server: The MLflow server.
        before: Id of the newest trace before the run.

    Returns:
        The trace in MLflow's list of traces.

    Raises:
        DemoError: No new trace arrives.
    """
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        trace = server.find_newest_trace()
        if trace is not None and trace["trace_id"] != before:
            return trace
        time.sleep(POLL)
    raise DemoError("quickstart.py succeeded, but MLflow has no new trace")


# --- the trace in MLflow ---


@dataclass(frozen=True)
class Span:
    """A span as stored in MLflow. Ids stay in base64, because they are only compared."""

    id: str
    parent: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]

    @classmethod
    def read(cls, span: dict[str, Any]) -> Span:
        """Parse one span of MLflow's response, which is OTLP in JSON."""
        return cls(
            id=span["span_id"],
            parent=span.get("parent_span_id", ""),
            name=span["name"],
            start=int(span["start_time_unix_nano"]),
            end=int(span["end_time_unix_nano"]),
            failed="ERROR" in str(span.get("status", {}).get("code", "")),
            attributes=parse_attributes(span.get("attributes", [])),
        )

    @property
    def tokens(self) -> str:
        """Input and output tokens of a model's span."""
        usage = self.attributes.get("mlflow.chat.tokenUsage")
        return f"{usage['input_tokens']} + {usage['output_tokens']}" if isinstance(usage, dict) else ""


def parse_attributes(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Convert OTLP's list of keys and values to a dict."""
    return {item["key"]: parse_value(item.get("value", {})) for item in items}


def parse_value(value: dict[str, Any]) -> Any:
    """Convert an OTLP value to a Python value."""
    match value:
        case {"kvlist_value": structure}:  # without "values" if it is empty
            return parse_attributes(structure.get("values", []))
        case {"array_value": array}:
            return [parse_value(item) for item in array.get("values", [])]
        case {"string_value": str(text)} if text[:1] in ("{", "["):
            return parse_json(text)
        case _:  # a plain value, or an empty one for null
            return next(iter(value.values()), None)


def print_trace(server: Server, trace: dict[str, Any]) -> None:
    """Print the tree of spans with inputs and outputs, and MLflow's summary of the trace.

    Args:
        server: The MLflow server.
        trace: The trace in MLflow's list of traces.

    Raises:
        DemoError: MLflow has no spans for the trace.
    """
    trace_id, experiment = trace["trace_id"], trace["trace_location"]["mlflow_experiment"]["experiment_id"]
    rows = list(walk_tree(server.get_spans(trace_id)))
    if not rows:
        raise DemoError(f"MLflow lists the trace {trace_id} but has no spans for it")
    name_width = max(len(lead) + len(span.name) for lead, _, span in rows) + 2
    say(f"{'SPAN':{name_width}}{'TYPE':11}{'DURATION':>10}   TOKENS (in + out)")
    for lead, below, span in rows:
        kind = span.attributes.get("mlflow.spanType", "-")
        took = format_duration((span.end - span.start) / 1e9)
        row = f"{lead + span.name:{name_width}}{kind:11}{took:>10}   {span.tokens}"
        say(row.rstrip() + ("  FAILED" if span.failed else ""))
        for label, key in (("in ", "mlflow.spanInputs"), ("out", "mlflow.spanOutputs")):
            if (content := span.attributes.get(key)) not in (None, ""):
                say(truncate(f"{below}  {label}  {summarize(content)}"))

    usage = json.loads(trace.get("trace_metadata", {}).get("mlflow.trace.tokenUsage", "{}"))
    totals = {
        "trace": trace_id,
        "name": trace.get("tags", {}).get("mlflow.traceName", "-"),
        "state": trace.get("state", "-"),
        "duration": format_duration(float(str(trace.get("execution_duration", "0s")).rstrip("s"))),
        "spans": str(len(rows)),
        "tokens": "{input_tokens} in + {output_tokens} out = {total_tokens}".format(**usage) if usage else "-",
        "request": summarize(parse_json(trace.get("request_preview", "-"))),
        "response": summarize(parse_json(trace.get("response_preview", "-"))),
    }
    say()
    for label, text in totals.items():
        say(truncate(f"{label:10}{text}"))
    say(f"{'console':10}{server.console_url(experiment, trace_id)}")


def walk_tree(spans: list[Span]) -> Iterator[tuple[str, str, Span]]:
    """Walk the spans from the root down.

    Args:
        spans: All spans of a trace, ordered by start time.

    Yields:
        The prefix of the span's line, the prefix of the lines below it, and the span.
    """
    span_ids = {span.id for span in spans}

    def walk(span: Span, lead: str, indent: str) -> Iterator[tuple[str, str, Span]]:
        children = [child for child in spans if child.parent == span.id]
        yield lead, indent + ("│" if children else " "), span
        for child in children:
            is_last = child is children[-1]
            yield from walk(child, indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  "))

    for root in (span for span in spans if span.parent not in span_ids):
        yield from walk(root, "", "")


def summarize(value: Any) -> str:
    """Return inputs or outputs in one line: the last message of a chat, or the texts of documents."""
    match value:
        case {"messages": [only]}:
            return format_message(only)
        case {"messages": [*_, last] as messages}:
            return f"{len(messages)} messages, the last: {format_message(last)}"
        case {"choices": [{"message": message}, *_]}:
            return format_message(message)
        case {"data": {"content": _}}:  # LangChain's own form of a message
            return format_message(value)
        case {"update": {"messages": _} as update} | [{"update": {"messages": _} as update}]:  # LangGraph's
            return summarize(update)
        case [{"page_content": _}, *_]:
            texts = (str(document.get("page_content")) for document in value)
            return f"{len(value)} documents: " + " | ".join(texts)
        case str():
            return " ".join(value.split())
        case _:
            return json.dumps(value, ensure_ascii=False)


def format_message(value: Any) -> str:
    """Return a chat message in one line: role, text and tool calls."""
    if not isinstance(value, dict):
        return summarize(value)
    message = value.get("data", value)
    parts = [summarize(message["content"])] if message.get("content") else []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        parts.append(f"→ {function.get('name')}({summarize(function.get('arguments', function.get('args', '')))})")
    return f"{value.get('role') or value.get('type') or 'message'}: {' '.join(parts)}"


def parse_json(text: str) -> Any:
    """Parse a JSON text. Return other texts unchanged, such as a preview that MLflow has truncated."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def format_duration(seconds: float) -> str:
    """Format a duration."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def truncate(line: str) -> str:
    """Truncate the line to the width of the terminal."""
    width = shutil.get_terminal_size((110, 24)).columns
    return line if len(line) <= width else line[: width - 1] + "…"


# --- the demo ---


def say(line: str = "", *, end: str = "\n") -> None:
    """Print and flush, so that progress is visible in a pipe too."""
    print(line, end=end, flush=True)


def demo(server: Server) -> None:
    """Run the app and print its trace."""
    earlier = server.find_newest_trace()
    run_quickstart(server)
    trace = wait_for_trace(server, before=earlier["trace_id"] if earlier else None)
    say("the trace in MLflow:")
    say()
    print_trace(server, trace)
    say()


def keep_running(server: Server) -> None:
    """Keep the server running until Ctrl-C. Raise DemoError if it ends earlier."""
    say("MLflow keeps running. Open the address of the console in a browser. Press Ctrl-C to stop.")
    try:
        server.process.wait()
    except KeyboardInterrupt:
        say()
        return
    raise DemoError(f"MLflow ended unexpectedly with exit code {server.process.returncode}")


def read_tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of the server's log."""
    with contextlib.suppress(OSError):
        return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
    return "    (none)"


def exit_on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    """Exit on a signal, so that the server is stopped."""
    raise SystemExit(128 + number)


def main() -> int:
    """Parse the command line and run the demo.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description="Run quickstart.py against a real MLflow server.")
    parser.add_argument("--data", type=Path, default=HERE.parent / ".demo", help="data folder of the server")
    parser.add_argument("--port", type=int, default=0, help="preferred port; another one if it is not free")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, exit_on_signal)

    data: Path = arguments.data.resolve()
    try:
        data.mkdir(parents=True, exist_ok=True)
        with run_mlflow_server(data, arguments.port) as server:
            demo(server)
            if sys.stdin.isatty() and sys.stdout.isatty():
                keep_running(server)
            say("stopping MLflow ...", end=" ")
        say("stopped")
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output has ended, as in `make demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DemoError, OSError, ValueError, LookupError) as error:
        # ValueError and LookupError: MLflow's response has an unexpected form.
        reason = str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}"
        say(f"\n\nThe demo failed: {reason}")
        say(f"\nLast lines of the server's log, {data / 'server.log'}:\n{read_tail(data / 'server.log')}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
