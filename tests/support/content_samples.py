"""Small spans in every convention, with a marker for each kind of content that can be masked or hidden."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

IN, OUT, TOOL, PARAMETER, DOCUMENT, EMBEDDED = (
    f"planted-{kind}-zebra" for kind in ("in", "out", "tool", "parameter", "document", "embedded")
)
VECTOR = 0.7251834
PICTURE = "iVBORplantedpicturezebra"
IMAGE = f"data:image/png;base64,{PICTURE}"
MARKERS = {IN, OUT, TOOL, PARAMETER, DOCUMENT, EMBEDDED, PICTURE}

_dumps = json.dumps
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": TOOL}}}
_TOOL = {"type": "function", "function": {"name": "weather", "description": TOOL, "parameters": _SCHEMA}}
_CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": IN},
    {
        "role": "user",
        "content": [{"type": "text", "text": IN}, {"type": "image_url", "image_url": {"url": IMAGE}}],
    },
]
_PARTS_IN = [
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": IN},
            {"type": "blob", "modality": "image", "mime_type": "image/png", "content": PICTURE},
        ],
    },
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": IN}]},
]
_PARTS_OUT = [{"role": "assistant", "parts": [{"type": "text", "content": OUT}], "finish_reason": "stop"}]
_REQUEST = {"model": "gpt-x", "messages": _CHAT, "tools": [_TOOL], "stop": PARAMETER}
_ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": OUT}, "finish_reason": "stop"}]}

# Attributes, and events as name and attributes.
SpanContent = tuple[Mapping[str, Any], Sequence[tuple[str, Mapping[str, Any]]]]

CHATS: dict[str, SpanContent] = {
    "openinference": (
        {
            "openinference.span.kind": "LLM",
            "llm.model_name": "gpt-x",
            "input.value": _dumps(_REQUEST),
            "input.mime_type": "application/json",
            "output.value": _dumps(_ANSWER),
            "output.mime_type": "application/json",
            "llm.invocation_parameters": _dumps({"stop": PARAMETER, "tools": [_TOOL]}),
            "llm.input_messages.0.message.role": "system",
            "llm.input_messages.0.message.content": IN,
            "llm.input_messages.1.message.role": "user",
            "llm.input_messages.1.message.contents.0.message_content.type": "text",
            "llm.input_messages.1.message.contents.0.message_content.text": IN,
            "llm.input_messages.1.message.contents.1.message_content.type": "image",
            "llm.input_messages.1.message.contents.1.message_content.image.image.url": IMAGE,
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": OUT,
            "llm.tools.0.tool.json_schema": _dumps(_TOOL),
        },
        (),
    ),
    "genai": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "gpt-x",
            "gen_ai.request.stop_sequences": (PARAMETER,),
            "gen_ai.system_instructions": _dumps([{"type": "text", "content": IN}]),
            "gen_ai.input.messages": _dumps(_PARTS_IN),
            "gen_ai.output.messages": _dumps(_PARTS_OUT),
            "gen_ai.tool.definitions": _dumps([_TOOL]),
        },
        (),
    ),
    "genai, structured": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "gpt-x",
            "gen_ai.request.stop_sequences": (PARAMETER,),
            "gen_ai.input.messages": tuple(_PARTS_IN),
            "gen_ai.output.messages": tuple(_PARTS_OUT),
            "gen_ai.tool.definitions": (_TOOL,),
        },
        (),
    ),
    "genai, details": (
        {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x"},
        (
            (
                "gen_ai.client.inference.operation.details",
                {
                    "gen_ai.input.messages": _dumps(_PARTS_IN),
                    "gen_ai.output.messages": _dumps(_PARTS_OUT),
                    "gen_ai.tool.definitions": _dumps([_TOOL]),
                    "gen_ai.request.stop_sequences": (PARAMETER,),
                },
            ),
        ),
    ),
    "genai, events": (
        {"gen_ai.operation.name": "chat", "gen_ai.system": "openai"},
        (
            ("gen_ai.system.message", {"content": IN}),
            ("gen_ai.user.message", {"content": _dumps([{"text": IN}, _CHAT[1]["content"][1]])}),
            ("gen_ai.choice", {"message": _dumps([{"text": OUT}]), "finish_reason": "end_turn"}),
        ),
    ),
    "flattened prompts": (
        {
            "llm.request.type": "chat",
            "gen_ai.system": "openai",
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": _dumps(_CHAT[1]["content"]),
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": OUT,
            "llm.request.functions.0.name": "weather",
            "llm.request.functions.0.description": TOOL,
            "llm.request.functions.0.parameters": _dumps(_SCHEMA),
            "llm.chat.stop_sequences": (PARAMETER,),
        },
        (),
    ),
    "vercel": (
        {
            "ai.operationId": "ai.generateText.doGenerate",
            "ai.model.id": "gpt-x",
            "ai.prompt.messages": _dumps(_CHAT),
            "ai.prompt.tools": (_dumps({"type": "function", "name": "weather", "inputSchema": _SCHEMA}),),
            "ai.response.text": OUT,
            "ai.settings.stopSequences": (PARAMETER,),
        },
        (),
    ),
    "pydantic-ai": (
        {
            "gen_ai.operation.name": "invoke_agent",
            "agent_name": "agent",
            "pydantic_ai.all_messages": _dumps([*_PARTS_IN, *_PARTS_OUT]),
            "final_result": OUT,
            "model_request_parameters": _dumps(
                {"function_tools": [{"name": "weather", "description": TOOL}], "stop": PARAMETER}
            ),
        },
        (),
    ),
    "google-adk": (
        {
            "gen_ai.system": "gcp.vertex.agent",
            "gcp.vertex.agent.llm_request": _dumps(
                {
                    "model": "gemini-x",
                    "contents": [
                        {
                            "role": "user",
                            "parts": [
                                {"text": IN},
                                {"inline_data": {"mime_type": "image/png", "data": PICTURE}},
                            ],
                        }
                    ],
                    "config": {
                        "system_instruction": IN,
                        "stop": PARAMETER,
                        "tools": [{"function_declarations": [{"name": "weather", "description": TOOL}]}],
                    },
                }
            ),
            "gcp.vertex.agent.llm_response": _dumps({"content": {"role": "model", "parts": [{"text": OUT}]}}),
        },
        (),
    ),
    "logfire": (
        {
            "logfire.msg": "Chat Completion with 'gpt-x'",
            "request_data": _dumps(_REQUEST),
            "response_data": _dumps({"message": {"role": "assistant", "content": OUT}}),
        },
        (),
    ),
    "mlflow": (
        {
            "mlflow.spanType": "CHAT_MODEL",
            "mlflow.spanInputs": _dumps(_REQUEST),
            "mlflow.spanOutputs": _dumps(_ANSWER),
            "mlflow.chat.tools": _dumps([_TOOL]),
            "mlflow.chat.messages": _dumps([*_CHAT, _ANSWER["choices"][0]["message"]]),
        },
        (),
    ),
    "traceloop": (
        {
            "traceloop.span.kind": "workflow",
            "traceloop.entity.input": _dumps({"inputs": {"messages": _CHAT, "tools": [_TOOL]}}),
            "traceloop.entity.output": _dumps({"outputs": {"messages": [{"role": "assistant", "content": OUT}]}}),
        },
        (),
    ),
    "langchain": (
        {
            "openinference.span.kind": "CHAIN",
            "input.value": _dumps(
                {"messages": [[{"lc": 1, "id": ["langchain", "schema", "HumanMessage"], "kwargs": _CHAT[1]}]]}
            ),
            "output.value": _dumps({"messages": [{"type": "ai", "data": {"content": OUT, "type": "ai"}}]}),
            "llm.prompt_template.template": IN,
            "llm.prompt_template.variables": _dumps({"name": IN}),
        },
        (),
    ),
}
TOOLS: dict[str, SpanContent] = {
    "openinference": (
        {
            "openinference.span.kind": "TOOL",
            "tool.name": "weather",
            "tool.description": TOOL,
            "input.value": _dumps({"city": IN}),
            "output.value": OUT,
        },
        (),
    ),
    "genai": (
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "weather",
            "gen_ai.tool.call.id": "call_1",
            "gen_ai.tool.description": TOOL,
            "gen_ai.tool.call.arguments": _dumps({"city": IN}),
            "gen_ai.tool.call.result": OUT,
        },
        (),
    ),
    "genai, events": (
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "weather",
            "gen_ai.tool.json_schema": _dumps(_SCHEMA),
        },
        (
            ("gen_ai.tool.message", {"role": "tool", "content": _dumps({"city": IN}), "id": "call_1"}),
            ("gen_ai.choice", {"message": _dumps([{"text": OUT}]), "id": "call_1"}),
        ),
    ),
    "vercel": (
        {
            "ai.operationId": "ai.toolCall",
            "ai.toolCall.name": "weather",
            "ai.toolCall.args": _dumps({"city": IN}),
            "ai.toolCall.result": _dumps(OUT),
        },
        (),
    ),
    "pydantic-ai": (
        {"gen_ai.tool.name": "weather", "tool_arguments": _dumps({"city": IN}), "tool_response": OUT},
        (),
    ),
    "google-adk": (
        {
            "gen_ai.operation.name": "execute_tool",
            "gcp.vertex.agent.tool_call_args": _dumps({"city": IN}),
            "gcp.vertex.agent.tool_response": _dumps({"result": OUT}),
        },
        (),
    ),
    "traceloop": (
        {
            "traceloop.span.kind": "tool",
            "traceloop.entity.name": "weather",
            "traceloop.entity.input": _dumps({"args": [], "kwargs": {"city": IN}}),
            "traceloop.entity.output": _dumps(OUT),
        },
        (),
    ),
    "mcp": (
        {
            "mcp.method.name": "tools/call",
            "mcp.request.argument": _dumps({"city": IN}),
            "gen_ai.tool.call.result": OUT,
        },
        (),
    ),
    "crewai": (
        {
            "openinference.span.kind": "CHAIN",
            "crew_tasks": _dumps([{"description": IN}]),
            "output.value": _dumps({"raw": OUT}),
        },
        (),
    ),
    "unknown": ({"acme.agent.input": IN, "acme.agent.output": OUT}, ()),
}
COMPLETIONS: dict[str, SpanContent] = {
    "openinference": (
        {
            "openinference.span.kind": "LLM",
            "input.value": _dumps({"prompt": IN}),
            "output.value": _dumps({"choices": [{"text": OUT}]}),
            "llm.prompts.0.prompt.text": IN,
            "llm.choices.0.completion.text": OUT,
        },
        (),
    ),
    "genai": (
        {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.input.messages": _dumps(_PARTS_IN[:1]),
            "gen_ai.output.messages": _dumps(_PARTS_OUT),
        },
        (),
    ),
    "flattened prompts": (
        {
            "llm.request.type": "completion",
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": IN,
            "gen_ai.completion.0.content": OUT,
        },
        (),
    ),
    "content events": (
        {"gen_ai.operation.name": "text_completion", "gen_ai.system": "x"},
        (
            ("gen_ai.content.prompt", {"gen_ai.prompt": IN}),
            ("gen_ai.content.completion", {"gen_ai.completion": OUT}),
        ),
    ),
}
RETRIEVERS: dict[str, SpanContent] = {
    "openinference": (
        {
            "openinference.span.kind": "RETRIEVER",
            "input.value": IN,
            "output.value": _dumps([{"page_content": DOCUMENT}]),
            "retrieval.documents.0.document.content": DOCUMENT,
            "retrieval.documents.0.document.id": "7",
            "retrieval.documents.0.document.metadata": _dumps({"title": DOCUMENT}),
        },
        (),
    ),
    "genai": (
        {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.retrieval.query.text": IN,
            "gen_ai.retrieval.documents": _dumps([{"content": DOCUMENT}]),
        },
        (),
    ),
}
EMBEDDINGS: dict[str, SpanContent] = {
    "openinference": (
        {
            "openinference.span.kind": "EMBEDDING",
            "input.value": _dumps({"input": EMBEDDED}),
            "output.value": _dumps({"data": [{"embedding": [VECTOR]}]}),
            "embedding.embeddings.0.embedding.text": EMBEDDED,
            "embedding.embeddings.0.embedding.vector": (VECTOR,),
        },
        (),
    ),
    "genai": (
        {"gen_ai.operation.name": "embeddings", "gen_ai.embeddings.input": _dumps([EMBEDDED])},
        (),
    ),
    "vercel": (
        {
            "ai.operationId": "ai.embed.doEmbed",
            "ai.values": (_dumps(EMBEDDED),),
            "ai.embeddings": (_dumps([VECTOR]),),
        },
        (),
    ),
    "mlflow": (
        {
            "mlflow.spanType": "EMBEDDING",
            "mlflow.spanInputs": _dumps({"input": EMBEDDED}),
            "mlflow.spanOutputs": _dumps([[VECTOR]]),
        },
        (),
    ),
}
ALL_SAMPLES: dict[str, SpanContent] = {
    f"{name}: {key}": content
    for name, group in (
        ("chat", CHATS),
        ("tool", TOOLS),
        ("completion", COMPLETIONS),
        ("retriever", RETRIEVERS),
        ("embedding", EMBEDDINGS),
    )
    for key, content in group.items()
}
_RESOURCE = Resource({"service.name": "bot"})
_SCOPE = InstrumentationScope("tests")


def span(
    content: SpanContent,
    *,
    name: str = "span",
    number: int = 1,
    parent: int | None = None,
    status: Status | None = None,
    links: Sequence[Mapping[str, Any]] = (),
    resource: Resource = _RESOURCE,
) -> ReadableSpan:
    """Make an ended span; all spans have the same trace id. `links` are the attributes of its links."""
    return ReadableSpan(
        name,
        context=_context(number),
        parent=_context(parent) if parent is not None else None,
        resource=resource,
        attributes=content[0],
        events=[Event(event, attributes, 2) for event, attributes in content[1]],
        links=[Link(_context(99), attributes) for attributes in links],
        status=status or Status(StatusCode.UNSET),
        start_time=number,
        end_time=number + 10,
        instrumentation_scope=_SCOPE,
    )


def _context(number: int) -> SpanContext:
    return SpanContext(7, number, is_remote=False, trace_flags=TraceFlags(1))
