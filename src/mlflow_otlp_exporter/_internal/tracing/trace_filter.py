"""Which traces are left out: health checks, polling, and whatever else has nothing of an agent in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from opentelemetry.sdk.trace import ReadableSpan

TraceFilter = Callable[[Sequence[ReadableSpan]], bool]

# Instrumentations of HTTP, databases and messaging, by the last part of OpenTelemetry's names for them. The clients of
# clouds are not among them: `botocore` traces Bedrock's models, too.
_INFRASTRUCTURE = frozenset(
    {
        # HTTP and RPC, both ends
        *("asgi", "wsgi", "fastapi", "starlette", "flask", "django", "falcon", "pyramid", "tornado"),
        *("aiohttp_client", "aiohttp_server", "requests", "urllib", "urllib3", "httpx", "httpx2", "grpc"),
        # databases and caches
        *(
            "dbapi",
            "sqlalchemy",
            "sqlite3",
            "psycopg",
            "psycopg2",
            "asyncpg",
            "aiopg",
            "pymysql",
            "mysql",
            "mysqlclient",
        ),
        *("pymssql", "pymongo", "redis", "pymemcache", "elasticsearch", "opensearch", "cassandra", "tortoiseorm"),
        # messaging and tasks
        *(
            "celery",
            "kafka",
            "kafka_python",
            "confluent_kafka",
            "aiokafka",
            "pika",
            "aio_pika",
            "remoulade",
            "boto3sqs",
        ),
        # the inside of a process
        *("asyncio", "threading", "jinja2", "asyncclick", "click", "logging", "system_metrics"),
    }
)
_PREFIX = "opentelemetry.instrumentation."
# Frameworks that make such spans themselves.
_NATIVE = frozenset({"fastapi"})
_AGENTS_SCOPES = ("openinference.", "mlflow_otlp_exporter")
_AGENTS_ATTRIBUTES = ("openinference.", "gen_ai.", "llm.", "traceloop.", "ai.", "mlflow.span", "gcp.vertex.agent.")


def make_trace_filter(noise: Sequence[str]) -> TraceFilter | None:
    """Makes what decides about a trace.

    Args:
        noise: The setting.

    Returns:
        What is called with the spans of a whole trace, and says whether to leave it out; None if nothing is.
    """
    words = [word.strip() for word in noise]
    if not words or words == ["none"]:
        return None
    if "all" in words:
        return lambda spans: not any(_of_an_agent(span) for span in spans)
    patterns = [word for word in words if word not in ("default", "none")]
    default = "default" in words

    def is_noise(spans: Sequence[ReadableSpan]) -> bool:
        return all(_listed(span, patterns, default=default) for span in spans)

    return is_noise


def _listed(span: ReadableSpan, patterns: Sequence[str], *, default: bool) -> bool:
    name = span.instrumentation_scope.name if span.instrumentation_scope is not None else ""
    known = name.startswith(_PREFIX) and name[len(_PREFIX) :].partition(".")[0] in _INFRASTRUCTURE
    if default and (known or name in _NATIVE):
        return not _marked(span)
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _of_an_agent(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return (scope is not None and scope.name.startswith(_AGENTS_SCOPES)) or _marked(span)


def _marked(span: ReadableSpan) -> bool:
    """Whether it says of itself that it belongs to an agent: an app may have put that onto a span of any kind."""
    attributes = span.attributes
    # A copy, as iterating over the SDK's own mapping takes ten times as long.
    keys = attributes.copy() if attributes is not None and hasattr(attributes, "copy") else attributes or {}
    return any(key.startswith(_AGENTS_ATTRIBUTES) for key in keys)
