"""The code of each message, under which docs/troubleshooting.md explains it.

A message ends with its code in brackets, whatever is said in between. The hundreds say what it is about: 1 settings,
2 the way to the server, 3 credentials, 4 the address and the destination, 5 server and content, 6 the disk, 7 the app,
8 what was done, 9 mistakes of this library.
"""

from __future__ import annotations

import enum


class MessageCode(enum.Enum):
    """MessageCode and title of a message."""

    INVALID_SETTING = "MLO-101", "a setting is wrong"
    NOT_A_SERVER = "MLO-102", "the tracking URI is not the address of a server"
    DATABRICKS = "MLO-103", "the tracking URI is Databricks'"
    REST_PATH = "MLO-104", "the address is that of a REST call or of a page"
    SDK_PLUGIN = "MLO-105", "the credentials are left to a plugin of the MLflow SDK"
    CONFLICTING_SETTINGS = "MLO-106", "two settings contradict each other"
    INVALID_CREDENTIAL = "MLO-107", "what is given as a credential is none"
    CREDENTIALS_FILE = "MLO-108", "MLflow's credentials file cannot be read"
    CREDENTIAL_PROVIDER = "MLO-109", "the credential provider cannot be used"
    TRACER_PROVIDER = "MLO-110", "the tracer provider cannot be joined"

    NAME_NOT_RESOLVED = "MLO-201", "the server's name cannot be resolved"
    CONNECTION_REFUSED = "MLO-202", "the server refuses connections"
    CONNECT_TIMEOUT = "MLO-203", "no connection in time"
    CERTIFICATE_UNTRUSTED = "MLO-204", "the server's certificate is not trusted"
    CERTIFICATE_EXPIRED = "MLO-205", "the server's certificate has expired"
    CERTIFICATE_HOST_MISMATCH = "MLO-206", "the server's certificate is for another name"
    NOT_TLS = "MLO-207", "there is no TLS at an https address"
    PROXY = "MLO-208", "no connection through the proxy"
    CONNECTION_CLOSED = "MLO-209", "the connection was closed without an answer"
    RESPONSE_TIMEOUT = "MLO-210", "no answer in time"
    INVALID_REQUEST = "MLO-211", "the request could not be made"
    TLS_REQUIRED = "MLO-212", "there is TLS at an http address"

    UNAUTHENTICATED = "MLO-301", "the server wants a credential, or another one"
    CREDENTIAL_UNAVAILABLE = "MLO-302", "the credential cannot be had now"
    PROXY_UNAUTHENTICATED = "MLO-303", "the proxy wants a credential"

    REDIRECTED = "MLO-401", "the server redirects"
    HTML_PAGE = "MLO-402", "an HTML page instead of an answer"
    NO_OTLP_ENDPOINT = "MLO-403", "no OTLP at this address"
    FILE_STORE = "MLO-404", "MLflow has a file store"
    HOST_NOT_ALLOWED = "MLO-405", "MLflow does not allow this host name"
    WORKSPACES_DISABLED = "MLO-406", "workspaces are not enabled"
    WORKSPACE_NOT_FOUND = "MLO-407", "the workspace does not exist"
    WORKSPACE_REQUIRED = "MLO-408", "the server wants a workspace"
    EXPERIMENT_NOT_FOUND = "MLO-409", "the experiment does not exist"
    EXPERIMENT_DELETED = "MLO-410", "the experiment is deleted"
    EXPERIMENT_REQUIRED = "MLO-411", "the server wants an experiment"
    PERMISSION_DENIED = "MLO-412", "no permission"
    LOOKUP_DENIED = "MLO-413", "the experiment may not be looked up"
    NO_MLFLOW_SERVER = "MLO-414", "no MLflow to look the experiment up"
    NO_EXPERIMENT_SET = "MLO-415", "no experiment was given"
    DESTINATION_REJECTED = "MLO-416", "the destination is not accepted"

    SERVER_UNAVAILABLE = "MLO-501", "the server is away"
    DATABASE_UNAVAILABLE = "MLO-502", "the server's database is away"
    DATABASE_DAMAGED = "MLO-503", "the server's database is damaged"
    RATE_LIMITED = "MLO-504", "too many requests"
    SERVER_ERROR = "MLO-505", "the server fails at it"
    SPAN_REJECTED = "MLO-506", "the content is refused"
    REQUEST_TOO_LARGE = "MLO-507", "the request is too large"
    PARTIAL_SUCCESS = "MLO-508", "spans are rejected"
    SERVER_MESSAGE = "MLO-509", "the server says something"
    COMPRESSION_UNSUPPORTED = "MLO-510", "the server takes no compressed bodies"
    POSSIBLE_DUPLICATE = "MLO-511", "spans may be counted twice"
    NOT_DELIVERED = "MLO-512", "no time left to send spans"
    AUTHORIZATION_CHECK_FAILED = "MLO-513", "the server cannot check permissions"
    TRACE_METADATA = "MLO-514", "MLflow is not told what follows spans"
    FEEDBACK_DROPPED = "MLO-515", "feedback is lost"
    ATTACHMENT_UPLOAD = "MLO-516", "images, sound and files are not uploaded"

    JOURNAL_UNAVAILABLE = "MLO-601", "ended spans are not written to the journal"
    SPOOL_UNAVAILABLE = "MLO-602", "the spool cannot be written"
    SPOOL_FULL = "MLO-603", "the spool is full"
    SPOOL_EXPIRED = "MLO-604", "spans on disk are too old"
    SPOOL_FILE_UNREADABLE = "MLO-605", "a file of the spool cannot be read"
    SPOOL_SHARED = "MLO-606", "exporters with different credentials share a spool"

    SPANS_DROPPED = "MLO-701", "spans are lost in the app"
    EXPORT_DISABLED = "MLO-702", "nothing is sent"
    ATTRIBUTES_DROPPED = "MLO-703", "spans have lost attributes"
    VALUES_DROPPED = "MLO-704", "attribute values are left out"
    INSTRUMENTATION_MISSING = "MLO-705", "no instrumentation is installed"
    INSTRUMENTATION_FAILED = "MLO-706", "an instrumentation could not be switched on"
    SERVICE_NAME_IGNORED = "MLO-707", "service_name= is not used"
    CONTENT_NOT_RECORDED = "MLO-708", "inputs, outputs or documents are not kept"
    INVALID_TRACE_CONTEXT = "MLO-709", "trace_context() was given something else"
    TRACE_FILTERED = "MLO-710", "traces are left out as noise"
    CLOCK_SKEW = "MLO-711", "the clocks differ"
    DESTINATION_TOO_LATE = "MLO-712", "a destination comes too late"
    MASK_FAILED = "MLO-713", "a mask failed"
    UNKNOWN_KIND = "MLO-714", "a kind is mistyped, most likely"

    EXPORT_CONFIGURED = "MLO-801", "where traces go"
    INSTRUMENTED = "MLO-802", "instrumentations are on"
    EXPERIMENT_CREATED = "MLO-803", "an experiment was created"
    RECOVERED = "MLO-804", "a problem is over"
    PIPELINE_REPLACED = "MLO-805", "one pipeline takes the place of another"

    INTERNAL_ERROR = "MLO-901", "a mistake in this library"

    def __init__(self, number: str, title: str) -> None:
        self.number, self.title = number, title

    def __str__(self) -> str:
        return self.number


def add_code(code: MessageCode, message: str) -> str:
    """A message with its code at the end, where every message has it."""
    return f"{message} [{code}]"
