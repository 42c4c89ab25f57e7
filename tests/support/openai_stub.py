"""A simulated API of OpenAI and Gemini on the loopback, whose answers depend only on the question."""

import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL, ANSWERS_AS, REASONING, BAD_MODEL = "gpt-4o-mini", "gpt-4o-mini-2024-07-18", 8, "bad-model"
GREETING = "Hello! How can I help you today?"
INPUT, OUTPUT, CACHED = 60, 24, 16
EMBEDDED = 4
CITIES = ("Paris", "London")
DSPY_FIELD = "[[ ## "
_CREATED = 1_700_000_000
_NUMBERS = itertools.count(1)


class OpenAIStub:
    """A running simulated API.

    A question about the weather in Paris or London, with a tool, gets a call of the first tool for each city. Tool
    results are repeated. Every other message gets a greeting. `bad-model` does not exist.
    """

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="openai-stub")
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith(":generateContent"):
            self._answer(200, _gemini_content(request, self.path))
        elif request["model"] == BAD_MODEL:
            error = {"message": f"The model `{BAD_MODEL}` does not exist", "type": "invalid_request_error"}
            self._answer(404, {"error": {**error, "param": None, "code": "model_not_found"}})
        elif self.path == "/v1/chat/completions" and request.get("stream"):
            self._stream(_chunks(_completion(request), usage=request.get("stream_options", {}).get("include_usage")))
        elif self.path == "/v1/chat/completions":
            self._answer(200, _completion(request))
        elif self.path == "/v1/responses":
            self._answer(200, _response(request))
        elif self.path == "/v1/embeddings":
            self._answer(200, _embeddings(request))
        else:
            self._answer(404, {"error": {"message": f"no {self.path}", "type": "invalid_request_error"}})

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _stream(self, chunks: Sequence[Mapping[str, Any]]) -> None:
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _reply(messages: Sequence[Mapping[str, Any]], tool: str | None) -> tuple[str | None, list[tuple[str, str, str]]]:
    """Return the reply to messages: a text, and calls as id, name and arguments."""
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.insert(0, str(message["content"]))
    if results:
        return f"Based on the tool results: {'; '.join(results)}", []
    question = str(messages[-1].get("content"))
    if any(DSPY_FIELD in str(message.get("content")) for message in messages):
        return _dspy_reply(question), []
    cities = [city for city in CITIES if city in question]
    if tool and cities and "weather" in question.lower():
        return None, [(f"call_{n}", tool, json.dumps({"city": city})) for n, city in enumerate(cities)]
    return GREETING, []


def _dspy_reply(question: str) -> str:
    """Fill in the fields that DSPy's prompt asks for: a call of the first tool, the end, or the answer."""
    if "next_tool_name" not in question:
        fields = {"reasoning": "The tool says so.", "answer": "Based on the tool results: rain in Paris"}
    elif "observation_0" in question:
        fields = {"next_thought": "Done.", "next_tool_name": "finish", "next_tool_args": "{}"}
    else:
        fields = {"next_thought": "Ask.", "next_tool_name": "get_weather", "next_tool_args": '{"city": "Paris"}'}
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in {**fields, "completed": ""}.items())


def _completion(request: Mapping[str, Any]) -> dict[str, Any]:
    tools = request.get("tools") or []
    text, calls = _reply(request["messages"], tools[0]["function"]["name"] if tools else None)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
            for identity, name, arguments in calls
        ]
    return {
        "id": f"chatcmpl-{next(_NUMBERS)}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": ANSWERS_AS,
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
        "usage": {
            "prompt_tokens": INPUT,
            "completion_tokens": OUTPUT,
            "total_tokens": INPUT + OUTPUT,
            "prompt_tokens_details": {"cached_tokens": CACHED},
            "completion_tokens_details": {"reasoning_tokens": REASONING},
        },
    }


def _chunks(whole: Mapping[str, Any], *, usage: bool) -> list[dict[str, Any]]:
    """Split a completion into the chunks of a stream: texts and arguments in halves."""
    message = whole["choices"][0]["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if message["content"] else None}]
    text = message["content"] or ""
    deltas += [{"content": half} for half in _halves(text)]
    for index, call in enumerate(message.get("tool_calls", [])):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        first = {"index": index, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        parts = [{"index": index, "function": {"arguments": half}} for half in _halves(arguments)]
        deltas += [{"tool_calls": [call_delta]} for call_delta in [first, *parts]]
    common = {"id": whole["id"], "object": "chat.completion.chunk", "created": _CREATED, "model": ANSWERS_AS}
    reason = whole["choices"][0]["finish_reason"]
    chunks = [{**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if usage:
        chunks.append({**common, "choices": [], "usage": whole["usage"]})
    return chunks


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [half for half in (text[:middle], text[middle:]) if half]


def _response(request: Mapping[str, Any]) -> dict[str, Any]:
    content = request["input"]
    items = [{"role": "user", "content": content}] if isinstance(content, str) else content
    messages = [
        {"role": "tool", "content": item["output"]} if item.get("type") == "function_call_output" else item
        for item in items
    ]
    tools = request.get("tools") or []
    text, calls = _reply(messages, tools[0]["name"] if tools else None)
    output: list[dict[str, Any]] = [
        {"type": "function_call", "id": f"fc_{identity}", "call_id": identity, "name": name, "arguments": arguments}
        for identity, name, arguments in calls
    ]
    if text is not None:
        part = {"type": "output_text", "text": text, "annotations": []}
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    return {
        "id": f"resp_{next(_NUMBERS)}",
        "object": "response",
        "created_at": _CREATED,
        "status": "completed",
        "model": ANSWERS_AS,
        "output": output,
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": {
            "input_tokens": INPUT,
            "input_tokens_details": {"cached_tokens": CACHED},
            "output_tokens": OUTPUT,
            "output_tokens_details": {"reasoning_tokens": REASONING},
            "total_tokens": INPUT + OUTPUT,
        },
    }


def _gemini_content(request: Mapping[str, Any], path: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for content in request["contents"]:
        for part in content["parts"]:
            if response := part.get("functionResponse"):
                messages.append({"role": "tool", "content": response["response"]["result"]})
            else:
                messages.append({"role": content["role"], "content": part.get("text")})
    tools = request.get("tools") or []
    text, calls = _reply(messages, tools[0]["functionDeclarations"][0]["name"] if tools else None)
    parts: list[dict[str, Any]] = [
        {"functionCall": {"name": name, "args": json.loads(arguments)}} for _, name, arguments in calls
    ]
    return {
        "candidates": [{"content": {"role": "model", "parts": parts or [{"text": text}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": INPUT,
            "cachedContentTokenCount": CACHED,
            "candidatesTokenCount": OUTPUT - REASONING,
            "thoughtsTokenCount": REASONING,
            "totalTokenCount": INPUT + OUTPUT,
        },
        "modelVersion": path.rpartition("/")[2].partition(":")[0],
        "responseId": f"resp-{next(_NUMBERS)}",
    }


def _embeddings(request: Mapping[str, Any]) -> dict[str, Any]:
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    vectors = [{"object": "embedding", "index": index, "embedding": [0.0, 1.0]} for index, _ in enumerate(texts)]
    usage = {"prompt_tokens": EMBEDDED, "total_tokens": EMBEDDED}
    return {"object": "list", "model": request["model"], "data": vectors, "usage": usage}
