"""What can be recognised by shape where no reader knows the attributes: lowest in precedence, and never a guess.

An attribute is a candidate for a field by the end of its key. Its value must have the shape that the field requires: a
list of messages, a provider's request or response, token counts, documents.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys
from mlflow_otlp_exporter._internal.enrichment.kinds import KIND_WORDS, MODEL_KINDS, OPERATIONS, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan, Usage, has_content
from mlflow_otlp_exporter._internal.enrichment.payloads import read_facts, read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import unflatten
from mlflow_otlp_exporter._internal.enrichment.readers.tables import (
    COUNT_NAMES,
    PARSERS,
    SESSION_KEYS,
    USER_KEYS,
    normalize_name,
    parse_tags,
    read_identity,
    read_values,
)
from mlflow_otlp_exporter._internal.enrichment.values import (
    decode_json,
    parse_int,
    parse_kind,
    parse_structured,
    parse_text,
)

# First segments of keys that describe machines and protocols, or that this package writes itself.
_OTHER_NAMESPACES = frozenset(
    {"http", "url", "db", "rpc", "net", "network", "server", "client", "messaging", "graphql", "code", "exception"}
    | {"faas", "k8s", "os", "process", "thread", "browser", "user_agent", "aws", "cloud", "otel", "telemetry"}
    | {"service", "host", "container", "error", "peer", "tls", "dns", "file", "mlflow", "mlflow_otlp"}
    | {"openinference"}
)
# Ends of keys by the field that they may hold: the last segment, or the last two; without separators.
_NAMES = {
    "session": SESSION_KEYS,
    "user": USER_KEYS,
    "tags": ("tags",),
    "metadata": ("metadata",),
    "input": (
        *("input", "inputs", "inputvalue", "inputtext", "inputdata", "request", "requestbody", "requestpayload"),
        *("prompt", "prompts", "messages", "inputmessages", "chathistory", "query", "question", "arguments", "args"),
        *("userinput", "userquery", "userprompt", "usermessage", "toolinput", "toolargs", "llminput", "llmrequest"),
    ),
    "output": (
        *("output", "outputs", "outputvalue", "outputtext", "outputdata", "response", "responsebody", "responsetext"),
        *("completion", "completions", "result", "answer", "generation", "outputmessages", "reply", "replies"),
        *("tooloutput", "toolresult", "llmoutput", "llmresponse"),
    ),
    "documents": ("documents", "retrieveddocuments", "sourcedocuments", "chunks", "retrievedchunks"),
    "tools": ("tools", "tooldefinitions", "availabletools"),
    "tool_name": ("toolname",),
    "agent_name": ("agentname",),
    "request_model": ("model", "modelname", "modelid", "requestmodel", "llmmodel"),
    "response_model": ("responsemodel",),
    "provider": ("provider", "providername", "modelprovider", "llmprovider"),
    "usage": ("usage", "tokenusage", "usagemetadata"),
    "cost": ("cost", "totalcost", "costusd"),
    "kind": ("spankind", "spantype", "observationtype", "runtype", "kind", "type", "operation", "operationname"),
}
_FIELDS = {name: field for field, names in _NAMES.items() for name in names}
_COUNT_FIELDS = {name: f"usage.{field}" for field, names in COUNT_NAMES.items() for name in names}
_SINGLE_FIELDS = (
    *("tool_name", "agent_name", "request_model", "response_model", "provider"),
    *("usage", "cost", "tools", "documents"),
)
_COUNT_PARENTS = ("usage", "token")
_GROUPS = ("input", "output", "documents", "tools")
# The field that an attribute may hold, and the prefix of the keys that are flattened together with it.
Place = tuple[str, str]
_SEPARATOR = r"[.:/]"
_MAX_KEY_LENGTH = 120
_KINDS = {**OPERATIONS, **KIND_WORDS, "function": Kind.TOOL}
# What callers put among the parameters of a call for their gateway: metadata with these prefixes is the gateway's own.
_GATEWAY_PREFIXES = ("user_api_key", "litellm_", "requester", "hidden_params", "model_", "headers", "endpoint")


@functools.lru_cache(maxsize=4096)  # spans of one source have the same keys
def classify_key(key: str) -> Place | None:
    """The field that an attribute may hold, by the end of its key."""
    segments = re.split(_SEPARATOR, key[:_MAX_KEY_LENGTH])
    if segments[0] in _OTHER_NAMESPACES and len(segments) > 1:
        return None
    for index, segment in enumerate(segments[1:], 1):
        if segment.isdigit():
            group = _FIELDS.get(normalize_name(segments[index - 1]))
            return (group, key[: len(".".join(segments[:index])) + 1]) if group in _GROUPS else None
    last = normalize_name(segments[-1])
    parent = normalize_name(segments[-2]) if len(segments) > 1 else ""
    if last in _COUNT_FIELDS and ("token" in last or any(name in parent for name in _COUNT_PARENTS)):
        return _COUNT_FIELDS[last], ""
    field = _FIELDS.get(parent + last) or _FIELDS.get(last)
    return (field, "") if field is not None else None


@cache_by_keys
def classify_keys(keys: tuple[str, ...]) -> list[tuple[str, Place]]:
    """The keys that may hold a field, with their places."""
    return [(key, place) for key in keys if (place := classify_key(key)) is not None]


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that a caller handed to a gateway or provider with the call."""
    metadata = parameters.get("metadata")
    properties = {
        key: value
        for key, value in (metadata.items() if isinstance(metadata, dict) else ())
        if key == "tags" or (isinstance(value, (str, int, float)) and not key.startswith(_GATEWAY_PREFIXES))
    }
    if isinstance(user := parameters.get("user"), str):
        properties.setdefault("user_id", user)
    return read_identity(properties)


def read_content(
    attributes: Mapping[str, Any], places: Sequence[tuple[str, Place]], kind: Kind | None, is_unknown: bool
) -> NormalizedSpan:
    """The content of attributes by their places, and the kind that it shows; `is_unknown`: no reader knows the span."""
    candidates: dict[str, list[Any]] = {}
    for key, (field, prefix) in places:
        if not prefix:
            candidates.setdefault(field, []).append(attributes[key])
    for prefix, field in {prefix: field for _, (field, prefix) in places if prefix}.items():
        candidates.setdefault(field, []).append(unflatten(attributes, prefix))
    fields: dict[str, Any] = {
        field: next(filter(None, map(PARSERS.get(field, parse_text), candidates.get(field, ()))), None)
        for field in _SINGLE_FIELDS
    }
    counts = [next(map(parse_int, candidates.get(f"usage.{field}", ())), None) for field in Usage._fields]
    if counts[0] is not None or counts[1] is not None:
        fields["usage"] = Usage(*counts)
    documents = fields.pop("documents")
    if is_unknown:  # otherwise a reader knows where its source puts them
        fields["tags"] = next(filter(None, map(parse_tags, candidates.get("tags", ()))), None)
        for value in candidates.get("metadata", ()):
            if isinstance(metadata := parse_structured(value), dict):
                fields.update(read_identity(metadata))
    requests, responses = (
        [value for value in map(decode_json, candidates.get(field, ())) if value not in ("", (), [], {})]
        for field in ("input", "output")
    )
    request = next((value for value in requests if has_content(read_request(value, is_model=True) or ())), None)
    response = next((value for value in responses if has_content(read_response(value, is_model=True) or ())), None)
    has_messages = request is not None or response is not None
    request = request if request is not None else next(iter(requests), None)
    response = response if response is not None else next(iter(responses), None)
    facts = read_facts(response)
    model = fields["request_model"] or fields["response_model"] or parse_text(facts.get("response_model"))
    is_priced = fields["usage"] is not None or "usage" in facts
    kind = kind or _read_kind(candidates)
    if kind is None:
        if documents and not is_priced:
            kind = Kind.RETRIEVER
        elif model and (is_priced or has_messages):
            kind = Kind.EMBEDDING if "embed" in model.lower() else Kind.CHAT_MODEL
        elif fields["tool_name"] and (request is not None or response is not None):
            kind = Kind.TOOL
    fields["documents"] = documents if kind is Kind.RETRIEVER else None
    content = read_values(kind, request, response)
    content.update((field, value) for field, value in fields.items() if value is not None)
    # A span above model calls that has a model and usage as well sums up the calls of an agent.
    return NormalizedSpan(**content, kind=kind, wraps_calls=True if kind in MODEL_KINDS else None)


def _read_kind(candidates: Mapping[str, list[Any]]) -> Kind | None:
    """The kind that an attribute names, if the span has content, a model or usage."""
    if not candidates.keys() & {"input", "output", "documents", "request_model", "usage", "usage.input"}:
        return None
    return next(filter(None, (parse_kind(value, _KINDS) for value in candidates.get("kind", ()))), None)
