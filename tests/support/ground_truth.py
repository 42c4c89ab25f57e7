"""Ground truth of the traces of the applications in `instrumented`, for `trace_checks`."""

from typing import Any

from support.instrumented import QUESTION
from support.openai_stub import ANSWERS_AS, CACHED, EMBEDDED, GREETING, INPUT, OUTPUT

RESULTS = [f"{city}: 21 C, sunny" for city in ("Paris", "London")]
FINAL = f"Based on the tool results: {'; '.join(RESULTS)}"

Truth = dict[str, Any]

CONTEXT: Truth = {"session": "s-7", "user": "ada", "tags": ["release"], "provider": "openai"}
GREETING_CHAT: Truth = {"request": "hello", "response": GREETING}
WEATHER: Truth = {"request": QUESTION, "tools": ["get_weather"]}
WEATHER_CALLS: Truth = {
    "tool_calls": [
        {"name": "get_weather", "arguments": {"city": city}, "result": result}
        for city, result in zip(("Paris", "London"), RESULTS, strict=True)
    ],
    "response": FINAL,
}
ONE_STEP, TWO_STEPS = (
    ["system", "user", "assistant(2 tool calls)"],
    ["system", "user", "assistant(2 tool calls)", "tool", "tool", "assistant"],
)
PLAIN_CHAT = [["system", "user", "assistant"]]


def usage(calls: int) -> Truth:
    counts = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    counts["cache_read_input_tokens"] = CACHED
    return {"usage": {key: count * calls for key, count in counts.items()}, "model": ANSWERS_AS}


def openai_truths() -> list[Truth]:
    """Return the ground truth in the order of `instrumented.openai_calls`."""
    truths: list[Truth] = [
        GREETING_CHAT | usage(1) | {"chats": PLAIN_CHAT},
        WEATHER
        | WEATHER_CALLS
        | usage(2)
        | {"chats": [ONE_STEP, TWO_STEPS], "span_types": {"travel-agent": ["AGENT"]}},
        GREETING_CHAT | usage(1) | {"chats": PLAIN_CHAT},
        WEATHER | usage(1) | {"chats": [ONE_STEP]},
        GREETING_CHAT | usage(1) | {"chats": PLAIN_CHAT},
        WEATHER | usage(1) | {"chats": [["user", "assistant(2 tool calls)"]]},
        {"usage": {"input_tokens": EMBEDDED, "output_tokens": 0, "total_tokens": EMBEDDED}, "model": EMBEDDING},
        {"request": "hello", "chats": [["user"]], "error_span": "", "model": "bad-model"},
    ]
    return [CONTEXT | truth for truth in truths]


EMBEDDING = "text-embedding-3-small"
AGENT = {"chats": [ONE_STEP, TWO_STEPS], **usage(2)}
LANGGRAPH = [
    CONTEXT | WEATHER | WEATHER_CALLS | AGENT | {"span_types": {"travel-agent": ["AGENT", "CHAIN"]}},
    CONTEXT
    | {"request": QUESTION, "tools": ["broken_weather"], "chats": [ONE_STEP], "error_span": "broken_weather"}
    | {"tool_calls": [{"name": "broken_weather", "arguments": {"city": "Paris"}}]}
    | usage(1),
    CONTEXT | GREETING_CHAT | usage(1) | {"chats": PLAIN_CHAT},
]
PYDANTIC = [
    CONTEXT | WEATHER | WEATHER_CALLS | AGENT,
    CONTEXT | GREETING_CHAT | usage(1) | {"tools": ["get_weather"], "chats": PLAIN_CHAT},
]
