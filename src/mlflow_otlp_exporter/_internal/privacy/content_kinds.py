"""The kind of content of each attribute and event, in every convention."""

import re
from enum import Enum

from mlflow_otlp_exporter._internal.enrichment.readers.dialects import DIALECTS, MCP
from mlflow_otlp_exporter._internal.enrichment.readers.fallback import classify_key
from mlflow_otlp_exporter._internal.enrichment.readers.tables import normalize_name
from mlflow_otlp_exporter._internal.installed_readers import InstalledReaders


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
        db.query.text db.statement full_command file_path pattern url""",
    Content.INPUT_MESSAGES: """
        gen_ai.input.messages gen_ai.system_instructions gen_ai.prompt gen_ai.content.prompt ai.prompt
        ai.prompt.messages gcp.vertex.agent.llm_request request_data llm.input_messages llm.prompts""",
    Content.OUTPUT: """
        output.value mlflow.spanOutputs gen_ai.tool.call.result tool_response ai.toolCall.result
        ai.toolCall.output gcp.vertex.agent.tool_response traceloop.entity.output mcp.response.value
        gen_ai.output.documents gen_ai.memory.records gen_ai.content.revised_prompt mlflow.chunk.value""",
    Content.OUTPUT_MESSAGES: """
        gen_ai.output.messages gen_ai.completion gen_ai.content.completion ai.response.text ai.response.object
        ai.response.reasoning ai.result.text ai.result.object final_result gcp.vertex.agent.llm_response response_data
        llm.output_messages llm.choices""",
    Content.TOOL_CALLS: "ai.response.toolCalls ai.result.toolCalls gen_ai.tool.args llm.function_call",
    Content.TRANSCRIPT: """
        mlflow.chat.messages pydantic_ai.all_messages all_messages_events events text transcript new_context
        agent.stateSnapshot lk.user_transcript lk.pii.user_transcript""",
    Content.TOOLS: """
        gen_ai.tool.definitions gen_ai.tool.json_schema gen_ai.tool.description gen_ai.agent.tools ai.prompt.tools
        ai.prompt.toolChoice mlflow.chat.tools llm.tools tool.json_schema tool.parameters tool.description
        tool.description_updated sk.available_functions""",
    Content.PARAMETERS: """
        llm.invocation_parameters embedding.invocation_parameters reranker.invocation_parameters ai.schema
        ai.settings llm.frequency_penalty llm.presence_penalty llm.temperature llm.top_p llm.top_k llm.max_tokens
        llm.chat.stop_sequences llm.headers llm.user llm.is_streaming model_request_parameters""",
    Content.DOCUMENTS: "gen_ai.retrieval.documents",
    Content.EMBEDDED_TEXT: "gen_ai.embeddings.input ai.value ai.values",
    Content.VECTOR: "ai.embedding ai.embeddings gen_ai.embeddings.vectors db.query.embeddings",
}
# The fields of normalized spans, which the tables of dialects and the ends of keys lead to.
_BY_FIELD = {
    "input": Content.INPUT,
    "query": Content.INPUT,
    "output": Content.OUTPUT,
    "instructions": Content.INPUT_MESSAGES,
    "input_messages": Content.INPUT_MESSAGES,
    "output_messages": Content.OUTPUT_MESSAGES,
    "tools": Content.TOOLS,
    "tool_description": Content.TOOLS,
    "documents": Content.DOCUMENTS,
    "embedded_texts": Content.EMBEDDED_TEXT,
    "invocation_parameters": Content.PARAMETERS,
}
_BY_KEY = {
    **{
        key: _BY_FIELD[field]
        for dialect in (*DIALECTS, MCP)
        for field, keys in dialect.fields.items()
        if field in _BY_FIELD
        for key in keys
    },
    **{key: content for content, keys in _EXACT.items() for key in keys.split()},
}
_PREFIXES = {
    Content.INPUT: "input. reranker.input_documents agent.messages.",
    Content.INPUT_MESSAGES: "llm.input_messages. gen_ai.prompt. llm.prompts.",
    Content.OUTPUT: "output.",
    Content.OUTPUT_MESSAGES: "llm.output_messages. gen_ai.completion. llm.choices.",
    Content.TEMPLATE: "gen_ai.prompt.variable. llm.prompt_template. traceloop.prompt.",
    Content.TOOLS: "llm.tools. llm.request.functions. ai.prompt.tools.",
    Content.PARAMETERS: "ai.settings. gen_ai.request.",
    Content.DOCUMENTS: "retrieval.documents",
    Content.OTHER_DOCUMENTS: "reranker.output_documents",
    Content.EMBEDDED_TEXT: "embedding.embeddings",
    Content.INPUT_IMAGES: "input.images",
    Content.OUTPUT_IMAGES: "output.images",
}
# The longest prefix decides.
_BY_PREFIX = sorted(
    ((prefix, content) for content, prefixes in _PREFIXES.items() for prefix in prefixes.split()),
    key=lambda item: -len(item[0]),
)
# Keys that hold no content in spite of their prefix or end.
_NO_CONTENT = frozenset(
    {"gen_ai.prompt.name", "gen_ai.prompt.version", "llm.prompt_template.version", "traceloop.prompt.key"}
    | {"traceloop.prompt.version", "gen_ai.request.model", "gen_ai.request.choice.count", "gen_ai.request.user"}
    | {"input.mime_type", "output.mime_type"}
    # A provider or a protocol.
    | {"gen_ai.system", "llm.system", "db.system", "rpc.system", "messaging.system"}
)
# Usual names in conventions without a reader.
_BY_SUFFIX = (
    (Content.INPUT, ".input .inputs .arguments .prompt .prompts .query .request.body .input.value"),
    (Content.OUTPUT, ".output .outputs .result .results .completion .response.body .output.value"),
)
# Last segments of keys, in lower case and without separators, beside those that enrichment knows.
_ENDS = {
    Content.INPUT_MESSAGES: "instruction instructions systeminstruction systeminstructions systemprompt system",
    Content.OUTPUT_MESSAGES: "choices candidates reasoning thinking",
    Content.TOOL_CALLS: "toolcalls functioncalls",
    Content.TOOLS: "functiontools providertools functions tooldescription",
    Content.TRANSCRIPT: "content contents text body chatctx inputsummary transcript",
    Content.TEMPLATE: "prompttemplate",
    Content.DOCUMENTS: "documents",
}
_BY_END = {end: content for content, ends in _ENDS.items() for end in ends.split()}
_SEPARATOR, _MAX_END_LENGTH = re.compile(r"[.:/]"), 40
# Flattened events of LlamaIndex (`LLMChatEndEvent`): keys by their beginnings; those without a kind hold no content.
_LLAMA_INDEX_KEYS: tuple[tuple[Content | None, str], ...] = (
    (None, "response.raw.id response.raw.model response.raw.usage response.additional_kwargs. model_dict.model"),
    (None, "model_dict.class_name"),
    (Content.INPUT_MESSAGES, "messages prompt model_dict.system_prompt"),
    (Content.OUTPUT, "response output delta"),
    (Content.TEMPLATE, "template"),
    (Content.INPUT, "query str_or_query_bundle input"),
    (Content.TOOLS, "additional_kwargs.tools tool"),
    (Content.PARAMETERS, "additional_kwargs. model_dict."),
    (Content.DOCUMENTS, "nodes text_chunks"),
    (Content.EMBEDDED_TEXT, "chunks"),
    (Content.VECTOR, "embeddings"),
)
_BY_LLAMA_INDEX_KEY = [(tuple(keys.split()), content) for content, keys in _LLAMA_INDEX_KEYS]
# Steps of workflows, whose inputs and outputs are whole states.
_TRANSCRIPT_EVENTS = {"step.output", "workflow.output"}
_QUANTITY_WORDS = ("usage", "token", "cost", "duration")
_INPUT_EVENTS = {
    "gen_ai.content.prompt",
    *(f"gen_ai.{role}.message" for role in ("system", "user", "assistant", "tool")),
}
_OUTPUT_EVENTS = frozenset({"gen_ai.choice", "gen_ai.content.completion", "gen_ai.content.completion.chunk"})


def classify_attribute(key: str) -> Content | None:
    """Return the kind of content of an attribute; None if it is never hidden."""
    content = _BY_KEY.get(key) or _BY_FIELD.get(InstalledReaders.fields.get(key, ""))
    if content is not None or key in _NO_CONTENT:
        return content
    if key.startswith("embedding.embeddings") and key.endswith("vector"):
        return Content.VECTOR
    for prefix, content in _BY_PREFIX:
        if key.startswith(prefix):
            return content
    if any(word in key for word in _QUANTITY_WORDS):
        return None
    for content, suffixes in _BY_SUFFIX:
        if key.endswith(tuple(suffixes.split())):
            return content
    return _classify_end(key)


def _classify_end(key: str) -> Content | None:
    """The kind of content by the end of a key, or of the name of an event, that no convention defines."""
    place = classify_key(key)
    content = _BY_FIELD.get(place[0]) if place is not None else None
    return content or _BY_END.get(normalize_name(_SEPARATOR.split(key[-_MAX_END_LENGTH:])[-1]))


def classify_event_attribute(name: str, key: str) -> Content | None:
    """Return the kind of content of an attribute of an event whose attributes are classified one by one."""
    if name.endswith("Event"):
        for prefixes, content in _BY_LLAMA_INDEX_KEY:
            if key.startswith(prefixes):
                return content
    if name in _TRANSCRIPT_EVENTS:
        return Content.TRANSCRIPT
    return classify_attribute(key) or _classify_end(name)


def classify_event(name: str) -> Content | None:
    """Return the kind of content of a whole event; None if its attributes are classified one by one."""
    if name.startswith("db.") and ".query." in name:
        return Content.VECTOR if name.endswith("embeddings") else Content.DOCUMENTS
    if name in _INPUT_EVENTS:
        return Content.INPUT_MESSAGES
    return Content.OUTPUT_MESSAGES if name in _OUTPUT_EVENTS else None
