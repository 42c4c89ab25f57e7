"""Runs `quickstart.py` against a real MLflow server and shows the trace as MLflow gives it back.

What is printed at the end comes from MLflow's REST API and not from the app: it is what the server has
understood and stored. The server is one of this interpreter's own environment, listens on 127.0.0.1 only,
keeps its data in one folder (`.demo/` at the root of the repository) and is stopped at the end. In a terminal
it stays up until Ctrl-C, so that the trace can be opened in the console.

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
EXPERIMENT = "quickstart"  # the name that quickstart.py gives to configure()
START_LIMIT = 120.0  # seconds; the first start makes the tables of the database
QUICKSTART_LIMIT = 60.0
POLL = 0.05

# Settings of the shell that starts the demo must neither redirect a part of it nor make it call home.
FOREIGN = re.compile(r"(?i)_?(MLFLOW|OTEL|OPENINFERENCE|LANGCHAIN|LANGSMITH)_|(https?|all|no)_proxy$")
SERVER_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Eight more processes that would run judges and scheduled jobs; a trace needs none of them.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # MLflow fetches a price list from the internet while it stores the first span of a model, and the app
    # waits for it (six seconds without a network). Empty means: the list that came with MLflow.
    "MLFLOW_MODEL_CATALOG_URI": "",
}


class DemoError(Exception):
    """Something that the demo needs did not work; the message is for the reader."""


# --- the server ---


@dataclass(frozen=True)
class Server:
    """A running MLflow server, and the calls of its REST API that the demo needs."""

    url: str
    process: subprocess.Popen[bytes]
    # Everything here is on the loopback: a proxy would not reach it.
    opener: urllib.request.OpenerDirector = field(
        default_factory=lambda: urllib.request.build_opener(urllib.request.ProxyHandler({}))
    )

    def get(self, path: str, *, body: dict[str, Any] | None = None, timeout: float = 10.0) -> str:
        """Calls the server: POST with a body, GET without.

        Args:
            path: Path and query, with the leading slash.
            body: What to send as JSON.
            timeout: Seconds to wait for each step of the answer.

        Returns:
            The body of a 2xx answer.

        Raises:
            DemoError: If there was no answer, or one that is not 2xx; its cause is urllib's error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=timeout) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise DemoError(f"MLflow answered {error.code} to {path}: {said}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"MLflow did not answer to {path}: {error}") from error

    def experiment_id(self) -> str | None:
        """The id of the quickstart's experiment, or None before its first run."""
        try:
            answer = self.get(f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}")
        except DemoError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
                return None
            raise
        return str(json.loads(answer)["experiment"]["experiment_id"])

    def newest_trace(self) -> dict[str, Any] | None:
        """What MLflow's list of traces says about the newest trace of the quickstart, if there is one."""
        experiment = self.experiment_id()
        if experiment is None:
            return None
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        search = {"locations": [place], "max_results": 1, "order_by": ["timestamp_ms DESC"]}
        found = json.loads(self.get("/api/3.0/mlflow/traces/search", body=search)).get("traces", [])
        return dict(found[0]) if found else None

    def spans(self, trace_id: str) -> list[Span]:
        """The stored spans of a trace, in the order of their start."""
        answer = json.loads(self.get(f"/api/3.0/mlflow/traces/get?trace_id={trace_id}"))
        return sorted((Span.read(each) for each in answer["trace"]["spans"]), key=lambda span: span.start)

    def console(self, experiment_id: str, trace_id: str) -> str:
        """Where the trace is to be seen in a browser."""
        trace = f"selectedEvaluationId={trace_id}&traceId={trace_id}"  # as trace_url() has it
        return f"{self.url}/#/experiments/{experiment_id}/traces?{trace}"


@contextlib.contextmanager
def mlflow_server(data: Path, wanted_port: int) -> Iterator[Server]:
    """Starts MLflow, waits until it answers, and stops it with all its children in any case.

    Args:
        data: Folder of the database, the artifacts and the log.
        wanted_port: The port to listen on if it is free; 0 for any.

    Yields:
        The server, ready.

    Raises:
        DemoError: If it does not start.
    """
    port = free_port(wanted_port)
    log = data / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    # Relative to the folder that it runs in: a folder with a space or a percent sign needs no escaping.
    command += ["--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db"]
    say(f"starting MLflow on {HOST}:{port}, data in {data} ...", end=" ")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=data,
            env=clean_environment() | SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: it can be ended with its children, and a Ctrl-C reaches the demo alone.
            start_new_session=True,
        )
        try:
            server = Server(f"http://{HOST}:{port}", process)
            wait_until_ready(server)
            say(f"version {server.get('/version').strip()} ready after {time.monotonic() - began:.1f} s")
            yield server
        finally:
            stop(process)


def wait_until_ready(server: Server) -> None:
    """Asks the server until it answers, or raises a DemoError if it ended or needs too long."""
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
    """Ends the process and its whole group: politely, then by force."""
    # A second Ctrl-C by an impatient user must not leave the server behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(wanted: int) -> int:
    """The wanted port if nobody listens on it, else one that the system picks."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As the server itself does: connections of a demo that has just ended do not count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise DemoError(f"no free port on {HOST}")


def clean_environment() -> dict[str, str]:
    """The environment without the settings that would change what the demo shows."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return kept | {"NO_PROXY": HOST}


# --- the app ---


def run_quickstart(server: Server) -> None:
    """Runs quickstart.py as a user would: only the tracking URI is told to it.

    Args:
        server: Where its trace shall go.

    Raises:
        DemoError: If it fails or hangs.
    """
    say("running examples/quickstart.py ...", end=" ")
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "quickstart.py")],
            env=clean_environment() | {"MLFLOW_TRACKING_URI": server.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=QUICKSTART_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"quickstart.py was not done after {QUICKSTART_LIMIT:.0f} s") from error
    if done.returncode != 0:
        raise DemoError(f"quickstart.py ended with exit code {done.returncode}:\n{done.stderr.strip()}")
    say(f"done after {time.monotonic() - began:.1f} s")
    say()
    for line in (done.stdout + done.stderr).splitlines():
        say(f"    {line}")
    say()


def wait_for_trace(server: Server, *, before: str | None) -> dict[str, Any]:
    """Waits a moment for a trace that was not there before: an older one would prove nothing.

    Args:
        server: Where to look.
        before: The id of the newest trace before the run.

    Returns:
        What MLflow's list of traces says about it.

    Raises:
        DemoError: If none comes.
    """
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        trace = server.newest_trace()
        if trace is not None and trace["trace_id"] != before:
            return trace
        time.sleep(POLL)
    raise DemoError("quickstart.py ended well, but MLflow has no new trace of it")


# --- what MLflow gives back ---


@dataclass(frozen=True)
class Span:
    """A span as MLflow has stored it. Ids stay in base64, as they come: they are only compared."""

    id: str
    parent: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]

    @classmethod
    def read(cls, span: dict[str, Any]) -> Span:
        """Reads one span of MLflow's answer, which is OTLP in JSON."""
        return cls(
            id=span["span_id"],
            parent=span.get("parent_span_id", ""),
            name=span["name"],
            start=int(span["start_time_unix_nano"]),
            end=int(span["end_time_unix_nano"]),
            failed="ERROR" in str(span.get("status", {}).get("code", "")),
            attributes=pairs(span.get("attributes", [])),
        )

    @property
    def tokens(self) -> str:
        """Tokens read and written, for spans of a model."""
        usage = self.attributes.get("mlflow.chat.tokenUsage")
        return f"{usage['input_tokens']} + {usage['output_tokens']}" if isinstance(usage, dict) else ""


def pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """OTLP's list of keys and values as a dict."""
    return {item["key"]: plain(item.get("value", {})) for item in items}


def plain(value: dict[str, Any]) -> Any:
    """An OTLP value as the Python value that it stands for."""
    match value:
        case {"kvlist_value": structure}:  # an empty one has no "values"
            return pairs(structure.get("values", []))
        case {"array_value": array}:
            return [plain(item) for item in array.get("values", [])]
        case {"string_value": str(text)} if text[:1] in ("{", "["):
            return parsed(text)
        case _:  # a plain value; the empty one is null
            return next(iter(value.values()), None)


def print_trace(server: Server, trace: dict[str, Any]) -> None:
    """Prints the tree of spans with what went in and came out, and what MLflow says of the trace as a whole.

    Args:
        server: Where the spans are.
        trace: The trace's row in MLflow's list of traces.

    Raises:
        DemoError: If MLflow has no spans for it.
    """
    trace_id, experiment = trace["trace_id"], trace["trace_location"]["mlflow_experiment"]["experiment_id"]
    rows = list(tree(server.spans(trace_id)))
    if not rows:
        raise DemoError(f"MLflow lists the trace {trace_id} but has no spans for it")
    name_width = max(len(lead) + len(span.name) for lead, _, span in rows) + 2
    say(f"{'SPAN':{name_width}}{'TYPE':11}{'DURATION':>10}   TOKENS (in + out)")
    for lead, below, span in rows:
        kind = span.attributes.get("mlflow.spanType", "-")
        took = duration((span.end - span.start) / 1e9)
        row = f"{lead + span.name:{name_width}}{kind:11}{took:>10}   {span.tokens}"
        say(row.rstrip() + ("  FAILED" if span.failed else ""))
        for label, key in (("in ", "mlflow.spanInputs"), ("out", "mlflow.spanOutputs")):
            if (content := span.attributes.get(key)) not in (None, ""):
                say(cut(f"{below}  {label}  {brief(content)}"))

    usage = json.loads(trace.get("trace_metadata", {}).get("mlflow.trace.tokenUsage", "{}"))
    totals = {
        "trace": trace_id,
        "name": trace.get("tags", {}).get("mlflow.traceName", "-"),
        "state": trace.get("state", "-"),
        "duration": duration(float(str(trace.get("execution_duration", "0s")).rstrip("s"))),
        "spans": str(len(rows)),
        "tokens": "{input_tokens} in + {output_tokens} out = {total_tokens}".format(**usage) if usage else "-",
        "request": brief(parsed(trace.get("request_preview", "-"))),
        "response": brief(parsed(trace.get("response_preview", "-"))),
    }
    say()
    for label, text in totals.items():
        say(cut(f"{label:10}{text}"))
    say(f"{'console':10}{server.console(experiment, trace_id)}")


def tree(spans: list[Span]) -> Iterator[tuple[str, str, Span]]:
    """Walks the spans from the root down.

    Args:
        spans: All spans of a trace, in the order of their start.

    Yields:
        The lines to draw before a span's name, those to draw below its name, and the span.
    """
    known = {span.id for span in spans}

    def walk(span: Span, lead: str, rest: str) -> Iterator[tuple[str, str, Span]]:
        children = [each for each in spans if each.parent == span.id]
        yield lead, rest + ("│" if children else " "), span
        for child in children:
            last = child is children[-1]
            yield from walk(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    for root in (span for span in spans if span.parent not in known):
        yield from walk(root, "", "")


def brief(value: Any) -> str:
    """The gist of inputs or outputs in one line: the last message of a chat, the texts of documents."""
    match value:
        case {"messages": [only]}:
            return message(only)
        case {"messages": [*_, last] as messages}:
            return f"{len(messages)} messages, the last: {message(last)}"
        case {"choices": [{"message": said}, *_]}:
            return message(said)
        case {"data": {"content": _}}:  # LangChain's own form of a message
            return message(value)
        case {"update": {"messages": _} as update} | [{"update": {"messages": _} as update}]:  # LangGraph's
            return brief(update)
        case [{"page_content": _}, *_]:
            texts = (str(document.get("page_content")) for document in value)
            return f"{len(value)} documents: " + " | ".join(texts)
        case str():
            return " ".join(value.split())
        case _:
            return json.dumps(value, ensure_ascii=False)


def message(value: Any) -> str:
    """One chat message: who says what, and the tools it calls."""
    if not isinstance(value, dict):
        return brief(value)
    inner = value.get("data", value)
    said = [brief(inner["content"])] if inner.get("content") else []
    for call in inner.get("tool_calls") or []:
        function = call.get("function", call)
        said.append(f"→ {function.get('name')}({brief(function.get('arguments', function.get('args', '')))})")
    return f"{value.get('role') or value.get('type') or 'message'}: {' '.join(said)}"


def parsed(text: str) -> Any:
    """The value of a JSON text; the text itself if it is none, as a preview that MLflow has cut."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def duration(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def cut(line: str) -> str:
    """The line, not longer than the terminal is wide."""
    width = shutil.get_terminal_size((110, 24)).columns
    return line if len(line) <= width else line[: width - 1] + "…"


# --- the demo ---


def say(line: str = "", *, end: str = "\n") -> None:
    """Prints at once, also into a pipe: half of what the demo prints is there to be waited for."""
    print(line, end=end, flush=True)


def demo(server: Server) -> None:
    """Runs the app and shows its trace."""
    earlier = server.newest_trace()
    run_quickstart(server)
    trace = wait_for_trace(server, before=earlier["trace_id"] if earlier else None)
    say("the trace, as MLflow gives it back:")
    say()
    print_trace(server, trace)
    say()


def keep_running(server: Server) -> None:
    """Leaves the server up until Ctrl-C, or raises a DemoError if it ends before."""
    say("MLflow keeps running: open the console's address in a browser. Ctrl-C stops it.")
    try:
        server.process.wait()
    except KeyboardInterrupt:
        say()
        return
    raise DemoError(f"MLflow ended by itself, with exit code {server.process.returncode}")


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of the server's log."""
    with contextlib.suppress(OSError):
        return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
    return "    (none)"


def end_by_signal(number: int, _frame: FrameType | None) -> NoReturn:
    """Turns a signal into an exit, so that the server is stopped on the way out."""
    raise SystemExit(128 + number)


def main() -> int:
    """Parses the command line and runs the demo.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Runs quickstart.py against a real MLflow server.")
    parser.add_argument("--data", type=Path, default=HERE.parent / ".demo", help="the server's folder")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; another one if it is taken")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)

    data: Path = arguments.data.resolve()
    try:
        data.mkdir(parents=True, exist_ok=True)
        with mlflow_server(data, arguments.port) as server:
            demo(server)
            if sys.stdin.isatty() and sys.stdout.isatty():
                keep_running(server)
            say("stopping MLflow ...", end=" ")
        say("stopped")
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has gone, as in `make demo | head`: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DemoError, OSError, ValueError, LookupError) as error:
        # The last two are an answer of MLflow in a shape that the demo does not know.
        what = str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}"
        say(f"\n\nThe demo failed: {what}")
        say(f"\nThe end of the server's log, {data / 'server.log'}:\n{tail(data / 'server.log')}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
