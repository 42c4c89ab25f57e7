"""Messages of every shape that providers and frameworks write."""

import json
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment.messages import (
    normalize_role,
    read_messages,
    read_system_message,
    to_result_text,
)
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, Part, ToolCall
from mlflow_otlp_exporter._internal.enrichment.payloads import (
    find_last_text,
    read_answer,
    read_facts,
    read_other_fields,
    read_question,
    read_request,
    read_response,
)

PIXEL = "iVBORw0KGgo="
PICTURE = Part("image", url=f"data:image/png;base64,{PIXEL}", format="image/png")
PARIS = ToolCall("c1", "weather", '{"city": "Paris"}')
OSLO = ToolCall("c2", "weather", '{"city": "Oslo"}')


def user(text: str) -> Message:
    return Message("user", (Part("text", text),))


def assistant(text: str = "", *calls: ToolCall, reasoning: str = "") -> Message:
    return Message("assistant", (Part("text", text),) if text else (), calls, reasoning=reasoning)


def result(text: str, call: str = "c1", name: str = "") -> Message:
    return Message("tool", (Part("text", text),), (), call, name)


SHAPES: dict[str, tuple[Any, tuple[Message, ...]]] = {
    "OpenAI chat": (
        [
            {"role": "developer", "content": "be terse"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": PARIS.arguments}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        (Message("system", (Part("text", "be terse"),)), user("hi"), assistant("", PARIS), result("sunny")),
    ),
    "OpenAI function call": (
        [{"role": "assistant", "function_call": {"name": "weather", "arguments": "{}"}}],
        (assistant("", ToolCall("", "weather", "{}")),),
    ),
    "OpenAI refusal and file": (
        [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}, {"type": "file", "filename": "a.pdf"}]}],
        (Message("user", (Part("text", "no"), Part("file", text="a.pdf"))),),
    ),
    "OpenAI sound": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklG", "format": "mp3"}}]}],
        (Message("user", (Part("audio", data="UklG", format="mp3"),)),),
    ),
    "OpenAI image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE.url, "detail": "low"}}]}],
        (Message("user", (PICTURE._replace(format=""),)),),
    ),
    "OpenAI Responses": (
        [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": PARIS.arguments},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": OSLO.arguments},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]},
        ],
        (user("hi"), assistant("", PARIS, OSLO, reasoning="hm"), result("sunny"), assistant("done")),
    ),
    "GenAI parts": (
        [
            {
                "role": "user",
                "parts": [
                    {"type": "text", "content": "hi"},
                    {"type": "blob", "mime_type": "image/png", "modality": "image", "content": PIXEL},
                ],
            },
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "hm"},
                    {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}},
                ],
            },
            {"role": "user", "parts": [{"type": "tool_call_response", "id": "c1", "result": {"sky": "blue"}}]},
        ],
        (
            Message("user", (Part("text", "hi"), PICTURE)),
            assistant("", PARIS, reasoning="hm"),
            result('{"sky": "blue"}'),
        ),
    ),
    "GenAI uri": (
        [{"role": "user", "parts": [{"type": "uri", "uri": "https://x/y.png", "modality": "image"}]}],
        (Message("user", (Part("image", url="https://x/y.png"),)),),
    ),
    "Anthropic": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                    {"type": "text", "text": "hi"},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
        (
            Message("user", (PICTURE, Part("text", "hi"))),
            assistant("", PARIS, reasoning="hm"),
            result("sunny"),
            user("and now?"),
        ),
    ),
    "Gemini": (
        [
            {"role": "user", "parts": [{"text": "hi"}, {"inline_data": {"mime_type": "image/png", "data": PIXEL}}]},
            {"role": "model", "parts": [{"function_call": {"id": "c1", "name": "weather", "args": {"city": "Paris"}}}]},
            {
                "role": "user",
                "parts": [{"functionResponse": {"id": "c1", "name": "weather", "response": {"result": "sunny"}}}],
            },
            {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "done"}]},
        ],
        (
            Message("user", (Part("text", "hi"), PICTURE)),
            assistant("", PARIS),
            result('{"result": "sunny"}', name="weather"),
            assistant("done", reasoning="hm"),
        ),
    ),
    "Bedrock and Strands": (
        [
            {
                "role": "user",
                "content": [{"text": "hi"}, {"image": {"format": "png", "source": {"bytes": PIXEL}}}],
            },
            {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "hm"}}},
                    {"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Paris"}}},
                ],
            },
            {"role": "user", "content": [{"toolResult": {"toolUseId": "c1", "content": [{"text": "sunny"}]}}]},
        ],
        (
            Message("user", (Part("text", "hi"), PICTURE._replace(format=""))),
            assistant("", PARIS, reasoning="hm"),
            result("sunny"),
        ),
    ),
    "Strands, as text": (
        [{"role": "user", "content": '[{"text": "hi"}]'}],
        (user("hi"),),
    ),
    "LangChain constructors": (
        [
            [
                {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain", "schema", "messages", "SystemMessage"],
                    "kwargs": {"content": "be terse", "type": "system"},
                },
                {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain", "schema", "messages", "HumanMessage"],
                    "kwargs": {"content": "hi"},
                },
                {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain", "schema", "messages", "AIMessage"],
                    "kwargs": {
                        "content": "",
                        "tool_calls": [{"name": "weather", "args": {"city": "Paris"}, "id": "c1"}],
                    },
                },
            ]
        ],
        (Message("system", (Part("text", "be terse"),)), user("hi"), assistant("", PARIS)),
    ),
    "LangChain dictionaries": (
        [
            {"type": "human", "data": {"content": "hi", "type": "human"}},
            {"type": "tool", "data": {"content": "sunny", "tool_call_id": "c1", "name": "weather"}},
        ],
        (user("hi"), result("sunny", name="weather")),
    ),
    "LangChain flat": (
        [{"type": "human", "content": "hi"}, {"type": "AIMessageChunk", "content": "yo"}],
        (user("hi"), assistant("yo")),
    ),
    "Vercel AI": (
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "tool-call", "toolCallId": "c1", "toolName": "weather", "input": {"city": "Paris"}}
                ],
            },
            {
                "role": "tool",
                "content": [
                    {
                        "type": "tool-result",
                        "toolCallId": "c1",
                        "toolName": "weather",
                        "output": {"type": "text", "value": "sunny"},
                    }
                ],
            },
            {"role": "user", "content": [{"type": "file", "mediaType": "image/png", "data": PIXEL}]},
        ],
        (assistant("", PARIS), result("sunny", name="weather"), Message("user", (PICTURE,))),
    ),
    "LlamaIndex": (
        [
            {"role": "user", "blocks": [{"block_type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "blocks": [],
                "additional_kwargs": {
                    "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": PARIS.arguments}}]
                },
            },
        ],
        (user("hi"), assistant("", PARIS)),
    ),
    "Haystack": (
        [
            {"_role": "user", "_content": [{"text": "hi"}]},
            {
                "role": "assistant",
                "content": [{"tool_call": {"tool_name": "weather", "arguments": {"city": "Paris"}, "id": "c1"}}],
            },
            {"role": "tool", "content": [{"tool_call_result": {"result": "sunny", "origin": {"id": "c1"}}}]},
        ],
        (user("hi"), assistant("", PARIS), result("sunny")),
    ),
    "pydantic-ai's first format": (
        [
            {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hi"}]},
            {
                "kind": "response",
                "parts": [
                    {"part_kind": "text", "content": "wait"},
                    {
                        "part_kind": "tool-call",
                        "tool_name": "weather",
                        "args": {"city": "Paris"},
                        "tool_call_id": "c1",
                    },
                ],
            },
            {
                "kind": "request",
                "parts": [
                    {"part_kind": "tool-return", "tool_name": "weather", "content": "sunny", "tool_call_id": "c1"}
                ],
            },
        ],
        (user("hi"), assistant("wait", PARIS), result("sunny", name="weather")),
    ),
    "OpenInference, unflattened": (
        [
            {
                "message": {
                    "role": "assistant",
                    "contents": [
                        {"message_content": {"type": "text", "text": "wait"}},
                        {"message_content": {"type": "image", "image": {"image": {"url": PICTURE.url}}}},
                        {"message_content": {"type": "tool_use"}, "tool_call": {"id": "c1"}},
                    ],
                    "tool_calls": [
                        {
                            "tool_call": {
                                "id": "c1",
                                "function": {"name": "weather", "arguments": PARIS.arguments},
                            }
                        }
                    ],
                }
            }
        ],
        (Message("assistant", (Part("text", "wait"), PICTURE._replace(format="")), (PARIS,)),),
    ),
    "smolagents": (
        [
            {"role": "MessageRole.USER", "content": [{"type": "text", "text": "hi"}]},
            {"role": "tool-call", "content": "x"},
        ],
        (user("hi"), assistant("x")),
    ),
    "roles and texts": (
        [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "hello"}],
        (user("hi"), assistant("hello")),
    ),
    "a lone message": ({"role": "user", "content": "hi"}, (user("hi"),)),
    "an object with messages": ({"messages": [{"role": "user", "content": "hi"}], "model": "m"}, (user("hi"),)),
    "an unknown part": (
        [{"role": "user", "content": [{"type": "hologram", "data": {"a": 1}}]}],
        (user('{"type": "hologram", "data": {"a": 1}}'),),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("encoding", ["structured", "as JSON text"])
def test_read_messages_of_each_shape_returns_normal_form(name: str, encoding: str) -> None:
    value, expected = SHAPES[name]
    assert read_messages(value if encoding == "structured" else json.dumps(value)) == expected


@pytest.mark.parametrize("value", [None, "", "[]", "{}", 3, [], "[1, 2]", ["a repr"], "   "])
def test_read_messages_without_content_returns_no_message(value: Any) -> None:
    assert not [message for message in read_messages(value) or () if message.parts or message.tool_calls]


def test_read_messages_of_text_returns_one_message() -> None:
    assert read_messages("hi") == (user("hi"),)
    assert read_messages("hi", "assistant") == (assistant("hi"),)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("user", "user"),
        ("HUMAN", "user"),
        ("developer", "system"),
        ("model", "assistant"),
        ("MessageRole.ASSISTANT", "assistant"),
        ("function", "tool"),
        ("narrator", "user"),
        (None, "user"),
        (7, "user"),
    ],
)
def test_normalize_role_of_any_name_returns_mlflow_role(name: Any, role: str) -> None:
    assert normalize_role(name) == role


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("x", "x"),
        ([{"text": "a"}, {"text": "b"}], "a\nb"),
        ([{"type": "text", "text": "a"}], "a"),
        ({"a": 1}, '{"a": 1}'),
        ([{"json": {"a": 1}}], '[{"json": {"a": 1}}]'),
        (5, "5"),
    ],
)
def test_to_result_text_returns_text_or_json(value: Any, text: str) -> None:
    assert to_result_text(value) == text


def test_read_system_message_reads_text_and_parts() -> None:
    expected = Message("system", (Part("text", "be terse"),))
    assert read_system_message("be terse") == expected
    assert read_system_message('[{"type": "text", "content": "be terse"}]') == expected
    assert read_system_message([{"text": "be terse"}]) == expected
    assert read_system_message("") is None


REQUESTS: dict[str, tuple[Any, bool, tuple[Message, ...] | None]] = {
    "OpenAI": ({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, True, (user("hi"),)),
    "Responses": (
        {"input": "hi", "instructions": "be terse"},
        True,
        (Message("system", (Part("text", "be terse"),)), user("hi")),
    ),
    "Responses, items": ({"input": [{"role": "user", "content": "hi"}]}, True, (user("hi"),)),
    "Anthropic": (
        {"system": [{"type": "text", "text": "be terse"}], "messages": [{"role": "user", "content": "hi"}]},
        True,
        (Message("system", (Part("text", "be terse"),)), user("hi")),
    ),
    "Gemini": (
        {
            "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
            "config": {"system_instruction": {"parts": [{"text": "be terse"}]}},
        },
        True,
        (Message("system", (Part("text", "be terse"),)), user("hi")),
    ),
    "prompt": ({"prompt": "hi"}, True, (user("hi"),)),
    "prompts": ({"prompts": ["hi", "ho"]}, True, (user("hi"), user("ho"))),
    "prompt of a chain": ({"prompt": "hi"}, False, None),
    "agent's state": ({"input": {"messages": [{"role": "user", "content": "hi"}]}}, False, (user("hi"),)),
    "embedding": ({"input": ["red", "blue"], "model": "m"}, True, None),
    "documents": ([{"id": "1", "page_content": "x", "type": "Document"}], False, None),
    "tool calls": ([{"name": "weather", "args": {}, "id": "c1", "type": "tool_call"}], False, None),
    "reprs": ({"messages": ["ChatMessage(role=<MessageRole.USER: 'user'>)"]}, True, None),
    "text": ("hi", True, None),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_read_request_of_each_shape_returns_messages(name: str) -> None:
    value, is_model, expected = REQUESTS[name]
    assert read_request(value, is_model=is_model) == expected
    if not isinstance(value, str):
        assert read_request(json.dumps(value), is_model=is_model) == expected


LC_CALL = {"name": "f", "args": {"x": 1}, "id": "c1", "type": "tool_call"}
LC_RESULT = {"type": "tool", "data": {"content": "r", "tool_call_id": "c1"}}
RESPONSES: dict[str, tuple[Any, bool, tuple[Message, ...] | None]] = {
    "OpenAI": ({"choices": [{"message": {"role": "assistant", "content": "a"}}]}, True, (assistant("a"),)),
    "choices stay apart": (
        {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]},
        True,
        (assistant("a"), assistant("b")),
    ),
    "completion": ({"choices": [{"text": "a"}]}, True, (assistant("a"),)),
    "Responses": (
        {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
        True,
        (assistant("a"),),
    ),
    "Anthropic": ({"role": "assistant", "content": [{"type": "text", "text": "a"}]}, True, (assistant("a"),)),
    "Bedrock": (
        {"output": {"message": {"role": "assistant", "content": [{"text": "a"}]}}},
        True,
        (assistant("a"),),
    ),
    "Gemini": ({"candidates": [{"content": {"role": "model", "parts": [{"text": "a"}]}}]}, True, (assistant("a"),)),
    "LangChain": (
        {"generations": [[{"text": "a", "message": {"type": "ai", "data": {"content": "a"}}}]]},
        True,
        (assistant("a"),),
    ),
    "LangChain completion": ({"generations": [[{"text": "a"}]]}, True, (assistant("a"),)),
    "Haystack": ({"replies": [{"role": "assistant", "content": [{"text": "a"}]}]}, True, (assistant("a"),)),
    "Haystack texts": ({"replies": ["a"]}, True, (assistant("a"),)),
    "agent's state": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        False,
        (assistant("a"),),
    ),
    "LangGraph's command": (
        [{"graph": None, "update": {"messages": [{"type": "ai", "data": {"content": "a"}}]}}],
        False,
        (assistant("a"),),
    ),
    "calls of a step": (
        [{"update": {"messages": [{"type": "ai", "data": {"content": "", "tool_calls": [LC_CALL]}}]}}],
        False,
        (assistant("", ToolCall("c1", "f", '{"x": 1}')),),
    ),
    "results of a step": (
        {"messages": [{"type": "human", "data": {"content": "q"}}, LC_RESULT, LC_RESULT]},
        False,
        (result("r"), result("r")),
    ),
    "a step without either": ({"messages": [{"type": "human", "data": {"content": "q"}}]}, False, None),
    "a tool's answer": ({"type": "tool", "data": {"content": "a"}}, False, None),
    "an answer": ({"answer": 5}, False, None),
    "text": ("a", True, None),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_read_response_of_each_shape_returns_messages(name: str) -> None:
    value, is_model, expected = RESPONSES[name]
    assert read_response(value, is_model=is_model) == expected


@pytest.mark.parametrize(
    ("value", "question"),
    [
        ("hi", "hi"),
        ('{"question": "hi"}', "hi"),
        ({"input": "hi", "chat_history": []}, "hi"),
        ('{"question": "hi", "k": 3}', "hi"),
        ({"user_query": "hi", "user_id": "u-1"}, "hi"),
        ({"question": "hi", "history": [{"role": "user", "content": "Hello"}]}, "hi"),
        ({"request": {"question": "hi", "user_id": "u-1"}}, "hi"),
        ({"request": {"message": "hi", "thread": 1}, "user_id": "u-1"}, "hi"),
        ('{"args": ["hi"], "kwargs": {}}', "hi"),
        ('{"args": ["hi", 3], "kwargs": {}}', "hi"),
        ('{"args": [], "kwargs": {"question": "hi", "k": 3}}', "hi"),
        ('{"args": ["hi", "u-1"], "kwargs": {}}', None),
        ({"task": "hi"}, "hi"),
        ({"graph": None, "update": None, "resume": "hi", "goto": []}, "hi"),
        ({"city": "Paris"}, None),
        ({"q": "hi"}, None),
        ({"a": {"b": {"c": {"d": {"question": "hi"}}}}}, None),
        ('{"answer": 5}', None),
        ("  ", None),
        (None, None),
    ],
)
def test_read_question_returns_only_text(value: Any, question: str | None) -> None:
    assert read_question(value) == question


def test_read_answer_returns_only_text() -> None:
    assert read_answer('{"answer": "yes"}') == "yes"
    assert read_answer('{"answer": "yes", "sources": ["a"]}') == "yes"
    assert read_answer({"result": {"answer": "yes", "score": 1}, "status": "ok"}) == "yes"
    assert read_answer({"status": "ok", "count": 2}) is None


def test_read_answer_without_question_keeps_mapping() -> None:
    assert read_answer({"text": "yes"}) == "yes"
    assert read_answer({"text": "yes"}, is_conversation=False) is None


def test_read_request_adds_question_to_its_history() -> None:
    request = {"question": "b", "chat_history": [["human", "a"], ["ai", "Hello"]]}
    assert read_request(request, is_model=False) == (user("a"), assistant("Hello"), user("b"))


@pytest.mark.parametrize(
    ("value", "others"),
    [
        ({"question": "hi", "k": 3, "history": []}, {"k": 3}),
        ('{"args": [], "kwargs": {"question": "hi", "k": 3}}', {"k": 3}),
        ({"question": "hi"}, {}),
        ({"city": "Paris", "k": 3}, {}),
        ("hi", {}),
    ],
)
def test_read_other_fields_returns_fields_beside_the_text(value: Any, others: dict[str, Any]) -> None:
    assert read_other_fields(value, "hi") == others


def test_find_last_text_skips_messages_without_text() -> None:
    messages = (user("a"), assistant("b"), user("c"), assistant("", PARIS), result("d"))
    assert (find_last_text(messages, "user"), find_last_text(messages, "assistant")) == ("c", "b")
    assert (find_last_text(None, "user"), find_last_text((), "assistant")) == (None, None)


@pytest.mark.parametrize(
    ("response", "facts"),
    [
        (
            {
                "id": "r1",
                "model": "m",
                "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}],
                "usage": {"prompt_tokens": 3},
            },
            {"response_id": "r1", "response_model": "m", "finish_reason": "stop", "usage": {"prompt_tokens": 3}},
        ),
        (
            {"modelVersion": "m", "candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 3}},
            {"response_model": "m", "finish_reason": "STOP", "usage": {"promptTokenCount": 3}},
        ),
        (
            {
                "generations": [
                    [
                        {
                            "generation_info": {"finish_reason": "stop"},
                            "message": {
                                "id": ["AIMessage"],
                                "kwargs": {
                                    "id": "run-1",
                                    "usage_metadata": {"input_tokens": 3},
                                    "response_metadata": {"model_name": "m", "token_usage": {"prompt_tokens": 3}},
                                },
                            },
                        }
                    ]
                ]
            },
            {"response_model": "m", "finish_reason": "stop", "usage": {"input_tokens": 3}},
        ),
        (
            {"replies": [{"meta": {"model": "m", "finish_reason": "stop", "usage": {"prompt_tokens": 3}}}]},
            {"response_model": "m", "finish_reason": "stop", "usage": {"prompt_tokens": 3}},
        ),
        ({"id": "x", "content": "text"}, {}),
        ("text", {}),
    ],
)
def test_read_facts_of_any_response_returns_model_usage_and_end(response: Any, facts: dict[str, Any]) -> None:
    assert read_facts(response) == facts
