"""Readers that are tables: names of attributes, by the field of the normalized span that they hold."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.enrichment.kinds import KIND_WORDS, MODEL_KINDS, Kind
from mlflow_otlp_exporter._internal.enrichment.messages import read_system_message
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Cost, Message, NormalizedSpan, Part, Usage
from mlflow_otlp_exporter._internal.enrichment.payloads import (
    read_decoded_request,
    read_decoded_response,
    read_facts,
    simplify_call,
)
from mlflow_otlp_exporter._internal.enrichment.readers.base import Reader, SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.openinference import read_documents
from mlflow_otlp_exporter._internal.enrichment.tools import find_tools, read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    decode_json,
    parse_float,
    parse_int,
    parse_kind,
    parse_repr,
    parse_structured,
    parse_text,
    parse_texts,
    to_text,
)


class Dialect(NamedTuple):
    """A convention that keeps each field in attributes of its own.

    `fields` has the names of attributes by field, in order of precedence; the fields are those of the normalized span.
    `input` and `output` are read as the kind of the span requires; `usage` and `cost` are objects, `usage.input` or
    `cost.total` single numbers; `instructions` a system message beside the messages; `kind` is a word in `kinds` or in
    KIND_WORDS.
    """

    name: str
    prefixes: frozenset[str]
    fields: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, Kind] = {}
    # Prefixes of keys that hold session, user, tags and other metadata, and keys below them that are not metadata.
    metadata_prefixes: tuple[str, ...] = ()
    ignored_metadata: frozenset[str] = frozenset()
    # Keys of objects with a single key that stand around an input or output.
    envelopes: frozenset[str] = frozenset()
    # The kind of a span whose kind no attribute names.
    find_kind: Callable[[SpanView], Kind | None] | None = None
    # For what no table can say.
    complete: Callable[[SpanView, NormalizedSpan], NormalizedSpan | None] | None = None


# Keys in lower case, without separators, in order of precedence.
SESSION_KEYS = ("sessionid", "threadid", "conversationid", "tracesessionid")
USER_KEYS = ("userid", "enduserid", "traceuserid")
# Keys that LangChain, LangGraph and LangSmith add to metadata for their own use.
_FRAMEWORK_PREFIXES = ("lc_", "ls_", "langgraph_", "LANGSMITH_", "__pregel")
_FRAMEWORK_TAGS = ("seq:step:", "graph:step:", "langsmith:")
# Names of counts in providers' usage objects, in lower case and without separators; those of an object with details
# begin with `input` or `output`.
COUNT_NAMES = {
    "input": ("inputtokens", "prompttokens", "prompttokencount", "inputtokencount", "input", "prompt"),
    "output": ("outputtokens", "completiontokens", "candidatestokencount", "outputtokencount", "output", "completion"),
    "total": ("totaltokens", "totaltokencount", "total"),
    "cache_read": (
        *("inputcachedtokens", "inputcacheread", "inputcachereadtokens", "cachereadinputtokens", "cachereadtokens"),
        *("cachereadinputtokencount", "cachedcontenttokencount", "cachedinputtokens", "cachedtokens"),
    ),
    "cache_write": (
        *("cachecreationinputtokens", "cachewriteinputtokens", "cachewriteinputtokencount", "cachewritetokens"),
        *("inputcachecreation", "inputcachecreationtokens", "inputcachewritetokens"),
    ),
    "reasoning": (
        *("outputreasoningtokens", "outputreasoning", "thoughtstokencount", "reasoningoutputtokens"),
        *("reasoningtokens", "thinkingtokens"),
    ),
    "input_audio": ("inputaudiotokens", "inputaudio", "audioinputtokens"),
    "output_audio": ("outputaudiotokens", "outputaudio", "audiooutputtokens"),
    "cache_write_1h": ("outputephemeral1hinputtokens", "ephemeral1hinputtokens", "cachecreationephemeral1hinputtokens"),
}
_COUNTS = tuple(COUNT_NAMES[field] for field in Usage._fields)
_COST_NAMES = (
    ("input", "inputcost", "prompt", "promptcost"),
    ("output", "outputcost", "completion", "completioncost"),
    ("total", "totalcost"),
)


def table_reader(dialect: Dialect) -> Reader:
    return Reader(dialect.name, dialect.prefixes, partial(read_dialect, dialect), dialect.fields)


def read_dialect(dialect: Dialect, span: SpanView) -> NormalizedSpan | None:
    attributes = span.attributes
    values: dict[str, Any] = {}
    used_keys: dict[str, str] = {}
    for field, keys in dialect.fields.items():
        parse: Callable[[Any], Any] = PARSERS.get(field, _parse_text)
        for key in keys:
            value = attributes.get(key)
            if value is not None and value != "" and (parsed := parse(value)) is not None:
                values[field], used_keys[field] = parsed, key
                break
    kind = parse_kind(values.get("kind"), dialect.kinds) or parse_kind(values.get("kind"), KIND_WORDS)
    if kind is None and dialect.find_kind is not None:
        kind = dialect.find_kind(span)
    if dialect.metadata_prefixes:
        properties = collect_properties(attributes, dialect.metadata_prefixes)
        for field, value in read_identity(properties, dialect.ignored_metadata).items():
            values.setdefault(field, value)
    if not values and kind is None:
        return None
    values["kind"] = kind
    for field, make in (("usage", Usage), ("cost", Cost)):
        names = [name for name in values if name.startswith(field + ".")]
        numbers = {name.partition(".")[2]: values.pop(name) for name in names}
        if any(numbers.values()):
            values.setdefault(field, make(**numbers))
    request, response = decode_json(values.pop("input", None)), decode_json(values.pop("output", None))
    if dialect.envelopes:
        request, response = (_unwrap(value, dialect.envelopes, kind) for value in (request, response))
    instructions = values.pop("instructions", None)
    fields = {**read_values(kind, request, response), **values}
    messages = fields.get("input_messages")
    if instructions and messages and all(message.role != "system" for message in messages):
        fields["input_messages"] = (instructions, *messages)
    # An object may hold more than messages.
    texts = (("input", request, messages), ("output", response, fields.get("output_messages")))
    fields["covered_keys"] = tuple(
        used_keys[field] for field, value, parsed in texts if parsed and isinstance(value, (list, str))
    )
    normalized = NormalizedSpan(**fields)
    return dialect.complete(span, normalized) if dialect.complete is not None else normalized


def find_model_call(key: str) -> Callable[[SpanView], Kind | None]:
    """For `find_kind`: a span with a provider's request as a JSON object is the call of a model."""
    return lambda span: Kind.CHAT_MODEL if str(span.attributes.get(key)).startswith("{") else None


def _unwrap(value: Any, envelopes: frozenset[str], kind: Kind | None) -> Any:
    if kind not in MODEL_KINDS and isinstance(value, dict) and len(value) == 1 and value.keys() <= envelopes:
        return next(iter(value.values()))
    return value


def read_values(kind: Kind | None, request: Any, response: Any) -> dict[str, Any]:
    """The fields that a span's input and output stand for; JSON text is decoded already."""
    if kind is Kind.TOOL:
        return {"input": request, "output": response}
    request, response = simplify_call(request), simplify_call(response)
    fields: dict[str, Any] = {"input": request, "output": response}
    if kind in (Kind.RETRIEVER, Kind.RERANKER):
        if kind is Kind.RERANKER and isinstance(request, dict):
            fields["input_documents"] = read_documents(request.get("documents"))
            fields["top_k"] = parse_int(request.get("top_k"))
        fields["documents"] = read_documents(response.get("documents") if isinstance(response, dict) else response)
        fields["query"] = parse_text(request.get("query") if isinstance(request, dict) else request)
        return fields
    is_model = kind in MODEL_KINDS
    if is_model or kind is Kind.EMBEDDING:
        facts = read_facts(response)
        fields["usage"] = read_usage(facts.pop("usage", None))
        fields.update(facts)
    if kind is Kind.EMBEDDING:
        holder = request if isinstance(request, dict) else {"input": request}
        texts = next(filter(None, map(holder.get, ("input", "texts", "text"))), None)
        fields["embedded_texts"] = parse_texts(texts)
        return fields
    fields["input_messages"] = read_decoded_request(request, is_model=is_model)
    fields["output_messages"] = read_decoded_response(response, is_model=is_model)
    if is_model:
        if fields["input_messages"] is None and isinstance(request, list) and not any(map(_has_content, request)):
            fields["input"] = None
        fields["input_messages"] = fields["input_messages"] or to_message("user", request)
        fields["output_messages"] = fields["output_messages"] or to_message("assistant", response)
        if isinstance(request, dict):
            fields["tools"] = find_tools(request)
            fields["request_model"] = parse_text(request.get("model"))
    return fields


def _has_content(item: Any) -> bool:
    """Whether a message in a shape that is not known holds more than its role."""
    return not isinstance(item, dict) or any(value for key, value in item.items() if key not in ("role", "type"))


def to_message(role: str, value: Any) -> tuple[Message, ...] | None:
    return (Message(role, (Part("text", value),)),) if isinstance(value, str) and value else None


def collect_properties(attributes: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key, value in attributes.items():
        if key.startswith(prefixes):
            prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
            properties.setdefault(key[len(prefix) :], value)
    return properties


def read_identity(properties: Mapping[str, Any], ignored: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Session, user, tags and metadata among properties of a call, without those that frameworks add."""
    identity: dict[str, Any] = {}
    ids: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for key, value in properties.items():
        if not key or value is None:
            continue
        name = normalize_name(key)
        text = to_text(decode_json(value) if isinstance(value, str) and value[:1] == '"' else value)
        if name in SESSION_KEYS or name in USER_KEYS:
            ids[name] = text
        elif name == "tags":
            identity["tags"] = parse_tags(value)
        elif key not in ignored and not key.startswith(_FRAMEWORK_PREFIXES):
            metadata[key] = text
    for field, names in (("session", SESSION_KEYS), ("user", USER_KEYS)):
        if text := next((ids[name] for name in names if ids.get(name)), ""):
            identity[field] = text
    if metadata:
        identity["metadata"] = metadata
    return identity


def parse_tags(value: Any) -> tuple[str, ...] | None:
    """A list, or a text with commas; without the tags that LangChain adds."""
    tags = value.split(",") if isinstance(value, str) and value[:1] != "[" else parse_texts(value) or ()
    stripped = [tag.strip() for tag in tags]
    return tuple(tag for tag in stripped if tag and not tag.startswith(_FRAMEWORK_TAGS)) or None


def normalize_name(key: str) -> str:
    return key.replace("_", "").replace(".", "").replace("-", "").lower()


def read_usage(value: Any) -> Usage | None:
    """The counts in a usage object of any provider or SDK, as JSON text or structured."""
    usage = parse_structured(value) or parse_repr(value)
    if not isinstance(usage, dict):
        return None
    counts = parse_counts(usage)
    return counts if any(count is not None for count in counts[:3]) else None


def parse_counts(usage: Mapping[str, Any]) -> Usage:
    counts: dict[str, Any] = {}
    for key, item in usage.items():
        name = normalize_name(key)
        if isinstance(item, dict):
            side = "input" if name.startswith(("input", "prompt")) else "output"
            counts.update((side + normalize_name(detail), count) for detail, count in item.items())
        else:
            counts[name] = item
    return Usage(*(_select_number(counts, names, parse_int) for names in _COUNTS))


def read_cost(value: Any) -> Cost | None:
    """The costs in an object, or a total."""
    costs = parse_structured(value)
    if not isinstance(costs, dict):
        return Cost(total=total) if (total := parse_float(value)) else None
    numbers = {normalize_name(key): number for key, number in costs.items()}
    cost = Cost(*(_select_number(numbers, names, parse_float) for names in _COST_NAMES))
    return cost if any(cost) else None


def _select_number(numbers: Mapping[str, Any], names: tuple[str, ...], parse: Callable[[Any], Any]) -> Any:
    for name in names:
        if (number := parse(numbers.get(name))) is not None:
            return number
    return None


def _parse_object(value: Any) -> dict[str, Any] | None:
    parsed = parse_structured(value)
    return parsed if isinstance(parsed, dict) and parsed else None


def _parse_text(value: Any) -> str | None:
    """A text, also as JSON."""
    return parse_text(decode_json(value) if isinstance(value, str) and value[:1] == '"' else value)


# How the value of a field's attribute is parsed; without an entry, it is a text.
PARSERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("input", "output"), lambda value: value),
    "usage": read_usage,
    "cost": read_cost,
    "tools": read_tools,
    "tags": parse_tags,
    "instructions": read_system_message,
    "embedded_texts": parse_texts,
    "documents": lambda value: read_documents(parse_structured(value)),
    "invocation_parameters": _parse_object,
    "metadata": _parse_object,
    **{f"usage.{field}": parse_int for field in Usage._fields},
    **{f"cost.{field}": parse_float for field in Cost._fields},
}
