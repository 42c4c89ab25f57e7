"""A scripted HTTP server, for the answers and the faults that no MLflow server can be made to give.

It works on bare sockets, because what matters here is below HTTP: a connection reset before the request was
read, half a body, one byte a second. One thread accepts, and one serves each connection.
"""

import gzip
import http
import io
import select
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACES_PATH = "/v1/traces"
DRAIN_SECONDS = 5.0
"""How long a dropped connection is still read, so that it ends with a FIN (unread data would make it RST)."""
STOP_SECONDS = 20.0
COME_SECONDS = 30.0
"""How long requests may be on their way, on a machine that is busy with other things."""
HOLD_POLL_SECONDS = 0.01

Close = Literal["", "before-request", "after-headers-read", "after-request", "mid-body"]


@dataclass(frozen=True)
class Answer:
    """What to do with one request.

    Attributes:
        status: The HTTP status.
        reason: The reason phrase; None for the standard one.
        headers: Added to `Content-Length` and `Connection`, each of which can be overridden here.
        body: The bytes of the body, sent as they are.
        delay: Seconds before the first byte of the answer, or before the connection is dropped.
        drip: Seconds before each single byte of the body.
        drip_head: Seconds before each single byte of the status line and the headers.
        close: Where the connection is dropped. "before-request": when the first bytes of a request have
            come, none of them read (such a request is not recorded, and as its path is unknown, the answer is
            taken wherever it is next in a queue). "after-headers-read": recorded without its body
            (a function has the body already: for it the same as "after-request").
            "after-request": recorded whole, and not answered. "mid-body": half of the answer's body sent.
        reset: Close with RST instead of FIN.
        keep_alive: Whether the connection stays open after the answer.
        truncate: Announce the whole Content-Length, send half of the body and end the connection.
        raw: Send these bytes instead of an HTTP answer, then end the connection.
        hold: Answer when this is set, and not before: what the client knows until then can be looked at.
    """

    status: int = 200
    reason: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0
    drip: float | None = None
    drip_head: float | None = None
    close: Close = ""
    reset: bool = False
    keep_alive: bool = True
    truncate: bool = False
    raw: bytes | None = None
    hold: threading.Event | None = None

    def __post_init__(self) -> None:
        if self.cut and not self.body:
            raise ValueError("half of an empty body is the whole body: give a body to cut")
        if self.reset and not self.ends_connection:
            raise ValueError("reset says how the connection ends, but nothing here ends it")

    @property
    def cut(self) -> bool:
        """Whether only half of the body is sent."""
        return self.truncate or self.close == "mid-body"

    @property
    def ends_connection(self) -> bool:
        """Whether the connection is closed with this answer."""
        return bool(self.close) or self.truncate or not self.keep_alive or self.raw is not None


ACCEPTED = Answer(headers={"Content-Type": "application/x-protobuf"})
NOT_FOUND = Answer(404, headers={"Content-Type": "application/json"}, body=b'{"detail":"Not Found"}')


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it came over the wire.

    Attributes:
        method: The HTTP method.
        path: The path without the query.
        query: The query as sent, "" without one.
        headers: By lower-case name; repeated ones joined with ", ".
        body: The body as on the wire, with any chunked framing removed.
        connection: The number of the TCP connection, from 1.
        at: When it was read, on `time.monotonic()`.
        target: The request target as sent: not only the path when the client takes this for a proxy.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    connection: int
    at: float
    target: str

    @property
    def content(self) -> bytes:
        """The body without its Content-Encoding."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding == "gzip":
            return gzip.decompress(self.body)
        if encoding == "deflate":
            return zlib.decompress(self.body)
        assert encoding == "identity", f"unexpected content-encoding: {encoding}"
        return self.body

    def export_request(self) -> ExportTraceServiceRequest:
        """Parse the body as OTLP protobuf."""
        return ExportTraceServiceRequest.FromString(self.content)

    def spans(self) -> list[Span]:
        """All spans of the body, whatever resource and scope they are under."""
        return [
            span
            for resource in self.export_request().resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Script:
    """The answers of one path."""

    def __init__(self) -> None:
        self.queue: deque[Answer] = deque()
        self.default: Answer = ACCEPTED
        self.function: Callable[[RecordedRequest], Answer] | None = None

    def following(self) -> Answer:
        return self.queue[0] if self.queue else self.default

    def take(self) -> Answer:
        return self.queue.popleft() if self.queue else self.default


class _Gone(Exception):
    """The connection is over."""


class _BadRequest(Exception):
    """What came is not HTTP."""


class _Connection:
    """One TCP connection: reads requests, hands them to the server, sends what it says."""

    def __init__(self, server: "ScriptedServer", sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number
        self.buffer = bytearray()
        self.condition = threading.Condition()
        self.state: Literal["idle", "busy", "sending"] = "idle"
        self.thread = threading.Thread(target=self._run, name=f"scripted-server-connection-{number}", daemon=True)

    def _run(self) -> None:
        try:
            while self._one_request():
                pass
        except _BadRequest as error:
            self._refuse(str(error))
        except (_Gone, OSError):
            pass  # the client went away, which clients under test are free to do
        except Exception as error:  # raised again in the test's thread, by close()
            self.server._on_error(error)
        finally:
            self.sock.close()
            self._is("busy")
            self.server._forget(self)

    def hang_up(self, *, only_if_idle: bool = False) -> None:
        """Wake the thread out of whatever it waits for on the socket."""
        with self.condition:
            if only_if_idle:
                # A client that has its answer takes the connection for idle a moment before the thread does.
                self.condition.wait_for(lambda: self.state != "sending", STOP_SECONDS)
                if self.state != "idle":
                    return
            with suppress(OSError):  # already gone
                self.sock.shutdown(socket.SHUT_RDWR)

    def _is(self, state: Literal["idle", "busy", "sending"]) -> None:
        with self.condition:
            self.state = state
            self.condition.notify_all()

    # Reading

    def _wait_for_bytes(self) -> None:
        """Wait for the first bytes of the next request, and leave them unread."""
        self._is("idle")
        if not self.buffer and not self.sock.recv(1, socket.MSG_PEEK):
            raise _Gone
        self._is("busy")

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise _Gone
        self.buffer += data

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._fill()
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def _head(self) -> tuple[str, str, str, dict[str, str]]:
        words = self._line().decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _BadRequest(f"no HTTP request line: {words}")
        headers: dict[str, str] = {}
        while line := self._line().decode("latin-1"):
            name, colon, value = line.partition(":")
            if not colon:
                raise _BadRequest(f"no header: {line}")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return words[0], words[1], words[2], headers

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = io.BytesIO()
            while size := int(self._line().split(b";")[0], 16):
                body.write(self._exactly(size))
                self._line()
            while self._line():  # trailers
                pass
            return body.getvalue()
        return self._exactly(int(headers.get("content-length", "0")))

    # Answering

    def _one_request(self) -> bool:
        """Serve one request; says whether the connection goes on."""
        self._wait_for_bytes()
        unread = self.server._take_unread()
        if unread is not None:
            self._await_turn(unread)
            return self._drop(unread)
        method, target, protocol, headers = self._head()
        split = urlsplit(target)
        # Taken before the body is read, since it says whether the body is.
        taken = self.server._take(split.path)
        early = isinstance(taken, Answer) and taken.close == "after-headers-read"
        if not early and headers.get("expect", "").lower() == "100-continue":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"" if early else self._body(headers)
        request = RecordedRequest(method, split.path, split.query, headers, body, self.number, time.monotonic(), target)
        self.server._record(request)
        answer = taken if isinstance(taken, Answer) else taken(request)
        self._await_turn(answer)
        if answer.raw is not None:
            self.sock.sendall(answer.raw)
            return self._drop(answer)
        if answer.close and answer.close != "mid-body":
            return self._drop(answer)
        closing = protocol == "HTTP/1.0" or headers.get("connection", "").lower() == "close"
        self._send(answer, method, closing=closing)
        return self._drop(answer) if closing or answer.ends_connection else True

    def _send(self, answer: Answer, method: str, *, closing: bool) -> None:
        reason = answer.reason if answer.reason is not None else _standard_reason(answer.status)
        header_names = {name.lower() for name in answer.headers}
        lines = [f"HTTP/1.1 {answer.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        bodiless = answer.status < 200 or answer.status in (204, 304)
        if not bodiless and not header_names & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(answer.body)}")
        if "connection" not in header_names and (closing or not answer.keep_alive):
            lines.append("Connection: close")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        body = b"" if bodiless or method == "HEAD" else answer.body
        if answer.cut:
            body = body[: len(body) // 2]
        if answer.drip is not None and body:
            self.sock.sendall(head)
            for byte in body[:-1]:
                self._pause(answer.drip)
                self.sock.sendall(bytes([byte]))
            self._pause(answer.drip)
            head, body = b"", body[-1:]
        for byte in head[:-1] if answer.drip_head is not None else b"":
            self._pause(answer.drip_head or 0.0)
            self.sock.sendall(bytes([byte]))
            head = head[-1:]
        self._is("sending")
        self.sock.sendall(head + body)

    def _await_turn(self, answer: Answer) -> None:
        while answer.hold is not None and not answer.hold.wait(HOLD_POLL_SECONDS):
            self._pause(HOLD_POLL_SECONDS)
        self._pause(answer.delay)

    def _pause(self, seconds: float) -> None:
        if seconds and self.server._closing.wait(seconds):
            raise _Gone

    def _drop(self, answer: Answer) -> Literal[False]:
        if answer.reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        # A socket closed with data unread answers with RST whatever one wants, so read what still comes.
        self.sock.shutdown(socket.SHUT_WR)
        end = time.monotonic() + DRAIN_SECONDS
        while (remaining_seconds := end - time.monotonic()) > 0:
            readable, _, _ = select.select([self.sock], [], [], remaining_seconds)
            if not readable or not self.sock.recv(65536):
                break
        return False

    def _refuse(self, reason: str) -> None:
        with suppress(OSError):  # it did not speak HTTP, and may not listen either
            self._send(Answer(400, body=reason.encode(), keep_alive=False), "GET", closing=True)


def _standard_reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class ScriptedServer:
    """An HTTP server on 127.0.0.1 and a free port that answers as told and remembers what came.

    A context manager. Leaving it ends every connection and every thread, and raises what went wrong in them.

    Args:
        listening: False for one that has its port, and refuses connections until `listen` is called.
    """

    def __init__(self, *, listening: bool = True) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._waker, self._woken = socket.socketpair()
        self._condition = threading.Condition()
        self._closing = threading.Event()
        self._scripts: dict[str, _Script] = {TRACES_PATH: _Script()}
        self._requests: list[RecordedRequest] = []
        self._open: set[_Connection] = set()
        self._accepted = 0
        self._errors: list[Exception] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.traces_url = self.url + TRACES_PATH
        self._thread = threading.Thread(target=self._accept, name="scripted-server", daemon=True)
        if listening:
            self.listen()

    def listen(self) -> None:
        """Accept connections from now on."""
        self._listener.listen(128)
        self._thread.start()

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Telling it what to answer

    def answer(self, *answers: Answer, path: str = TRACES_PATH, then: Answer | None = None) -> None:
        """Queue answers for a path, behind those that are queued already, for any method.

        Args:
            answers: One for each request to come.
            path: The path they are for.
            then: What is answered when the queue is empty; without it the last answer repeats.
        """
        if not answers and then is None:
            raise ValueError("nothing to answer with")
        with self._condition:
            script = self._scripts.setdefault(path, _Script())
            script.function = None
            script.queue.extend(answers)
            script.default = answers[-1] if then is None else then

    def answer_with(self, path: str, function: Callable[[RecordedRequest], Answer]) -> None:
        """Let a function answer each request to a path; it runs in the thread of the connection."""
        with self._condition:
            self._scripts.setdefault(path, _Script()).function = function

    # What came

    @property
    def requests(self) -> list[RecordedRequest]:
        """All requests so far, in the order in which they were read."""
        with self._condition:
            return list(self._requests)

    def clear_requests(self) -> None:
        """Remove all requests so far, which a long test would accumulate."""
        with self._condition:
            self._requests.clear()

    def to(self, path: str) -> list[RecordedRequest]:
        """The requests to one path so far."""
        return [request for request in self.requests if request.path == path]

    def wait_for(self, count: int, path: str = TRACES_PATH, timeout: float = COME_SECONDS) -> list[RecordedRequest]:
        """Wait until a path got at least so many requests.

        Returns:
            All requests to that path.

        Raises:
            AssertionError: They did not come in time; the message says what did.
        """

        def enough() -> bool:
            return sum(request.path == path for request in self._requests) >= count

        with self._condition:
            if not self._condition.wait_for(enough, timeout):
                came = [f"{request.method} {request.target}" for request in self._requests]
                raise AssertionError(f"no {count} requests to {path} within {timeout} s, but {came}")
        return self.to(path)

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted so far."""
        with self._condition:
            return self._accepted

    @property
    def open_connections(self) -> int:
        """How many of them are open now."""
        with self._condition:
            return len(self._open)

    def close_idle_connections(self) -> None:
        """End the connections that wait for their next request, as a server does after its keep-alive time.

        When this returns the FIN is sent.
        """
        with self._condition:
            connections = list(self._open)
        for connection in connections:
            connection.hang_up(only_if_idle=True)

    def close(self) -> None:
        """End everything; can be called again."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._waker.send(b"x")
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        with self._condition:
            connections = list(self._open)
        for connection in connections:
            connection.hang_up()
        for connection in connections:
            connection.thread.join(STOP_SECONDS)
        for sock in (self._listener, self._waker, self._woken):
            sock.close()
        alive = [connection.thread.name for connection in connections if connection.thread.is_alive()]
        assert not alive, f"the threads of the scripted server did not end: {alive}"
        if self._errors:
            raise self._errors[0]

    # For the threads

    def _accept(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._woken], [], [])
            if self._woken in readable:
                return
            try:
                sock, _ = self._listener.accept()
            except OSError:
                continue  # it was gone before it was accepted
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._condition:
                self._accepted += 1
                connection = _Connection(self, sock, self._accepted)
                self._open.add(connection)
            connection.thread.start()

    def _forget(self, connection: _Connection) -> None:
        with self._condition:
            self._open.discard(connection)

    def _on_error(self, error: Exception) -> None:
        with self._condition:
            self._errors.append(error)

    def _take_unread(self) -> Answer | None:
        """The next answer, where it is one that must not read the request."""
        with self._condition:
            for script in self._scripts.values():
                if script.function is None and script.following().close == "before-request":
                    return script.take()
        return None

    def _take(self, path: str) -> Answer | Callable[[RecordedRequest], Answer]:
        """The next answer for a path, or the function that makes it."""
        with self._condition:
            script = self._scripts.get(path)
            if script is None:
                return NOT_FOUND
            return script.take() if script.function is None else script.function

    def _record(self, request: RecordedRequest) -> None:
        with self._condition:
            self._requests.append(request)
            self._condition.notify_all()
