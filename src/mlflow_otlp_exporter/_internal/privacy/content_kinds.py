"""The kind of content of each attribute and event, in every convention."""

from __future__ import annotations

from enum import Enum


class Content(Enum):
    """A kind of content that can be hidden."""

    INPUT = "input"
    INPUT_MESSAGES = "messages to a model"
    OUTPUT = "output"
    OUTPUT_MESSAGES = "messages of a model"
    TOOL_CALLS = "tool calls of a model, without text"
    TRANSCRIPT = "messages to and of a model"
    TEMPLATE = "template and variables of a prompt"
    TOOLS = "tool definitions"
    PARAMETERS = "parameters of a call"
    DOCUMENTS = "retrieved documents"
    OTHER_DOCUMENTS = "documents that a reranker returned"
    EMBEDDED_TEXT = "embedded texts"
    VECTOR = "vectors"
    INPUT_IMAGES = "input images"
    OUTPUT_IMAGES = "output images"


_EXACT = {
    Content.INPUT: """
        input.value mlflow.spanInputs gen_ai.tool.call.arguments tool_arguments ai.toolCall.args ai.toolCall.input
        gcp.vertex.agent.tool_call_args gcp.vertex.agent.data traceloop.entity.input mcp.request.argument
        gen_ai.retrieval.query.text reranker.query crew_tasks crew_agents crew_inputs message message_context
        db.query.text db.statement""",
    Content.INPUT_MESSAGES: """
        gen_ai.input.messages gen_ai.system_instructions gen_ai.prompt gen_ai.content.prompt ai.prompt
        ai.prompt.messages gcp.vertex.agent.llm_request request_data llm.input_messages llm.prompts""",
    Content.OUTPUT: """
        output.value mlflow.spanOutputs gen_ai.tool.call.result tool_response ai.toolCall.result
        ai.toolCall.output gcp.vertex.agent.tool_response traceloop.entity.output mcp.response.value
        gen_ai.output.documents gen_ai.memory.records gen_ai.content.revised_prompt""",
    Content.OUTPUT_MESSAGES: """
        gen_ai.output.messages gen_ai.completion gen_ai.content.completion ai.response.text ai.response.object
        ai.response.reasoning ai.result.text ai.result.object final_result gcp.vertex.agent.llm_response response_data
        llm.output_messages llm.choices""",
    Content.TOOL_CALLS: "ai.response.toolCalls ai.result.toolCalls gen_ai.tool.args llm.function_call",
    Content.TRANSCRIPT: "mlflow.chat.messages pydantic_ai.all_messages all_messages_events events",
    Content.TOOLS: """
        gen_ai.tool.definitions gen_ai.tool.json_schema gen_ai.tool.description gen_ai.agent.tools ai.prompt.tools
        ai.prompt.toolChoice mlflow.chat.tools llm.tools tool.json_schema tool.parameters tool.description
        tool.description_updated sk.available_functions""",
    Content.PARAMETERS: """
        llm.invocation_parameters embedding.invocation_parameters reranker.invocation_parameters ai.schema
        ai.settings llm.frequency_penalty llm.presence_penalty llm.temperature llm.top_p llm.top_k llm.max_tokens
        llm.chat.stop_sequences llm.headers llm.user llm.is_streaming""",
    Content.DOCUMENTS: "gen_ai.retrieval.documents",
    Content.EMBEDDED_TEXT: "gen_ai.embeddings.input ai.value ai.values",
    Content.VECTOR: "ai.embedding ai.embeddings gen_ai.embeddings.vectors db.query.embeddings",
}
_BY_KEY = {key: content for content, keys in _EXACT.items() for key in keys.split()}
_BY_PREFIX = (
    ("llm.input_messages.", Content.INPUT_MESSAGES),
    ("llm.output_messages.", Content.OUTPUT_MESSAGES),
    ("gen_ai.prompt.variable.", Content.TEMPLATE),
    ("gen_ai.prompt.", Content.INPUT_MESSAGES),
    ("gen_ai.completion.", Content.OUTPUT_MESSAGES),
    ("llm.prompts.", Content.INPUT_MESSAGES),
    ("llm.choices.", Content.OUTPUT_MESSAGES),
    ("llm.prompt_template.", Content.TEMPLATE),
    ("traceloop.prompt.", Content.TEMPLATE),
    ("llm.tools.", Content.TOOLS),
    ("llm.request.functions.", Content.TOOLS),
    ("ai.prompt.tools.", Content.TOOLS),
    ("ai.settings.", Content.PARAMETERS),
    ("gen_ai.request.", Content.PARAMETERS),
    ("reranker.input_documents", Content.INPUT),
    ("reranker.output_documents", Content.OTHER_DOCUMENTS),
    ("retrieval.documents", Content.DOCUMENTS),
    ("input.images", Content.INPUT_IMAGES),
    ("output.images", Content.OUTPUT_IMAGES),
    ("input.", Content.INPUT),
    ("output.", Content.OUTPUT),
)
# Keys below the prefixes above that hold no content.
_TEMPLATE_NAMES = frozenset(
    {
        "gen_ai.prompt.name",
        "gen_ai.prompt.version",
        "llm.prompt_template.version",
        "traceloop.prompt.key",
        "traceloop.prompt.version",
    }
)
_REQUEST_NAMES = frozenset({"gen_ai.request.model", "gen_ai.request.choice.count", "gen_ai.request.user"})
_MIME_TYPES = frozenset({"input.mime_type", "output.mime_type"})
# Usual names in conventions without a reader.
_BY_SUFFIX = (
    (
        (".input", ".inputs", ".arguments", ".prompt", ".prompts", ".query", ".request.body", ".input.value"),
        Content.INPUT,
    ),
    ((".output", ".outputs", ".result", ".results", ".completion", ".response.body", ".output.value"), Content.OUTPUT),
)
_QUANTITY_WORDS = ("usage", "token", "cost", "duration")
_EVENTS = {
    "gen_ai.system.message": Content.INPUT_MESSAGES,
    "gen_ai.user.message": Content.INPUT_MESSAGES,
    "gen_ai.assistant.message": Content.INPUT_MESSAGES,
    "gen_ai.tool.message": Content.INPUT_MESSAGES,
    "gen_ai.content.prompt": Content.INPUT_MESSAGES,
    "gen_ai.choice": Content.OUTPUT_MESSAGES,
    "gen_ai.content.completion": Content.OUTPUT_MESSAGES,
    "gen_ai.content.completion.chunk": Content.OUTPUT_MESSAGES,
}


def classify_attribute(key: str) -> Content | None:
    """Return the kind of content of an attribute; None if it is never hidden."""
    content = _BY_KEY.get(key)
    if content is not None or key in _TEMPLATE_NAMES or key in _REQUEST_NAMES or key in _MIME_TYPES:
        return content
    if key.startswith("embedding.embeddings"):
        return Content.VECTOR if key.endswith("vector") else Content.EMBEDDED_TEXT
    for prefix, content in _BY_PREFIX:
        if key.startswith(prefix):
            return content
    for suffixes, content in _BY_SUFFIX:
        if key.endswith(suffixes) and not any(word in key for word in _QUANTITY_WORDS):
            return content
    return None


def classify_event(name: str) -> Content | None:
    """Return the kind of content of a whole event; None if its attributes are classified one by one."""
    if name.startswith("db.") and ".query." in name:
        return Content.VECTOR if name.endswith("embeddings") else Content.DOCUMENTS
    return _EVENTS.get(name)
