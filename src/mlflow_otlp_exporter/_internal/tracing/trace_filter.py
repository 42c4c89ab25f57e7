"""Filter for traces without agent spans, such as health checks and polling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.attribute_names import TRACE_SESSION

TraceFilter = Callable[[Sequence[ReadableSpan]], bool]

# Instrumentations of HTTP, databases and messaging, by the end of their scope name. Cloud clients are not in the
# list: `botocore` also traces models on Bedrock.
_INFRASTRUCTURE = frozenset(
    {
        # HTTP and RPC, client and server
        *("asgi", "wsgi", "fastapi", "starlette", "flask", "django", "falcon", "pyramid", "tornado"),
        *("aiohttp_client", "aiohttp_server", "requests", "urllib", "urllib3", "httpx", "httpx2", "grpc"),
        # databases and caches
        *("dbapi", "sqlalchemy", "sqlite3", "psycopg", "psycopg2", "asyncpg", "aiopg", "pymysql", "mysql"),
        *("mysqlclient", "pymssql", "pymongo", "redis", "pymemcache", "elasticsearch", "opensearch", "cassandra"),
        *("tortoiseorm",),
        # messaging and tasks
        *("celery", "kafka", "kafka_python", "confluent_kafka", "aiokafka", "pika", "aio_pika"),
        *("remoulade", "boto3sqs"),
        # inside a process
        *("asyncio", "threading", "jinja2", "asyncclick", "click", "logging", "system_metrics"),
        # JavaScript
        *("http", "undici", "fetch", "xml-http-request", "express", "koa", "hapi", "connect", "restify", "router"),
        *("nestjs-core", "graphql", "net", "dns", "fs", "socket.io", "pg", "pg-pool", "mysql2", "knex", "mongodb"),
        *("mongoose", "ioredis", "redis-4", "memcached", "cassandra-driver", "tedious", "amqplib", "kafkajs"),
        *("generic-pool", "dataloader", "lru-memoizer", "bunyan", "pino", "winston"),
    }
)
_PREFIXES = ("opentelemetry.instrumentation.", "@opentelemetry/instrumentation-")
# Rust's `tracing` writes it on each span: a coding agent such as Codex makes hundreds of them for a question.
_RUNTIME_ATTRIBUTE = "busy_ns"
# Frameworks that create such spans without an instrumentation package.
_NATIVE = frozenset({"fastapi"})
_AGENT_SCOPES = ("openinference.", "@arizeai/openinference", "mlflow_otlp_exporter")
# Content of models, tools, agents and retrieval, by the beginnings of attribute keys.
_AGENT_ATTRIBUTES = (
    *("openinference.", "gen_ai.", "llm.", "traceloop.", "ai.", "mlflow.", "gcp.vertex.agent.", "input.value"),
    *("output.value", "retrieval.documents", "langfuse.", "langsmith.", "genkit:", "mastra.", "lk.", "lmnr."),
    *("haystack.", "crew_", "codex.tool.", "codex.turn.token_usage.", "codex.usage."),
)


def make_trace_filter(entries: Sequence[str]) -> TraceFilter | None:
    """Build the predicate over the spans of a trace for the entries of the setting; None if nothing is filtered."""
    words = [word.strip() for word in entries]
    if not words or words == ["none"]:
        return None
    if "all" in words:
        return lambda spans: not any(_is_agent_span(span) for span in spans)
    patterns = [word for word in words if word not in ("default", "none")]
    default = "default" in words

    def is_filtered(spans: Sequence[ReadableSpan]) -> bool:
        for span in spans:
            name = span.instrumentation_scope.name if span.instrumentation_scope is not None else ""
            if default and _is_infrastructure(span, name):
                if _has_agent_attributes(span):
                    return False
            elif not patterns or not any(fnmatchcase(name, pattern) for pattern in patterns):
                return False
        return True

    return is_filtered


def _is_infrastructure(span: ReadableSpan, scope_name: str) -> bool:
    for prefix in _PREFIXES:
        if scope_name.startswith(prefix):
            return scope_name[len(prefix) :].partition(".")[0] in _INFRASTRUCTURE
    return scope_name in _NATIVE or _RUNTIME_ATTRIBUTE in (span.attributes or ())


def _is_agent_span(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return (scope is not None and scope.name.startswith(_AGENT_SCOPES)) or _has_agent_attributes(span)


def _has_agent_attributes(span: ReadableSpan) -> bool:
    attributes = span.attributes
    # Copied, because iterating over the SDK's own mapping takes ten times as long.
    keys = attributes.copy() if attributes is not None and hasattr(attributes, "copy") else attributes or {}
    # `trace_context` sets the session on every root, also on that of a health check.
    return any(key.startswith(_AGENT_ATTRIBUTES) and key != TRACE_SESSION for key in keys)
