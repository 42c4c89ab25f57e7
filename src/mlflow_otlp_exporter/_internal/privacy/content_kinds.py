"""The kind of content of each attribute and event, in every convention."""

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
        llm.chat.stop_sequences llm.headers llm.user llm.is_streaming model_request_parameters""",
    Content.DOCUMENTS: "gen_ai.retrieval.documents",
    Content.EMBEDDED_TEXT: "gen_ai.embeddings.input ai.value ai.values",
    Content.VECTOR: "ai.embedding ai.embeddings gen_ai.embeddings.vectors db.query.embeddings",
}
_BY_KEY = {key: content for content, keys in _EXACT.items() for key in keys.split()}
_PREFIXES = {
    Content.INPUT: "input. reranker.input_documents",
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
# Keys below these prefixes that hold no content.
_NO_CONTENT = frozenset(
    {"gen_ai.prompt.name", "gen_ai.prompt.version", "llm.prompt_template.version", "traceloop.prompt.key"}
    | {"traceloop.prompt.version", "gen_ai.request.model", "gen_ai.request.choice.count", "gen_ai.request.user"}
    | {"input.mime_type", "output.mime_type"}
)
# Usual names in conventions without a reader.
_BY_SUFFIX = (
    (Content.INPUT, ".input .inputs .arguments .prompt .prompts .query .request.body .input.value"),
    (Content.OUTPUT, ".output .outputs .result .results .completion .response.body .output.value"),
)
_QUANTITY_WORDS = ("usage", "token", "cost", "duration")
_INPUT_EVENTS = {
    "gen_ai.content.prompt",
    *(f"gen_ai.{role}.message" for role in ("system", "user", "assistant", "tool")),
}
_OUTPUT_EVENTS = frozenset({"gen_ai.choice", "gen_ai.content.completion", "gen_ai.content.completion.chunk"})


def classify_attribute(key: str) -> Content | None:
    """Return the kind of content of an attribute; None if it is never hidden."""
    content = _BY_KEY.get(key)
    if content is not None or key in _NO_CONTENT:
        return content
    if key.startswith("embedding.embeddings") and key.endswith("vector"):
        return Content.VECTOR
    for prefix, content in _BY_PREFIX:
        if key.startswith(prefix):
            return content
    for content, suffixes in _BY_SUFFIX:
        if key.endswith(tuple(suffixes.split())) and not any(word in key for word in _QUANTITY_WORDS):
            return content
    return None


def classify_event(name: str) -> Content | None:
    """Return the kind of content of a whole event; None if its attributes are classified one by one."""
    if name.startswith("db.") and ".query." in name:
        return Content.VECTOR if name.endswith("embeddings") else Content.DOCUMENTS
    if name in _INPUT_EVENTS:
        return Content.INPUT_MESSAGES
    return Content.OUTPUT_MESSAGES if name in _OUTPUT_EVENTS else None
