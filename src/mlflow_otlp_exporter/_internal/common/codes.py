"""The code of each message; docs/troubleshooting.md explains it.

A message ends with its code in brackets. The hundreds: 1 settings, 2 connection to the server, 3 credentials, 4 address
and destination, 5 server and content, 6 disk, 7 application, 8 information, 9 errors of this library.
"""

from __future__ import annotations

import enum


class MessageCode(enum.Enum):
    """Number and title of a message code."""

    INVALID_SETTING = "MLO-101", "Invalid setting"
    NOT_A_SERVER = "MLO-102", "Tracking URI is no server address"
    DATABRICKS = "MLO-103", "Tracking URI of Databricks"
    REST_PATH = "MLO-104", "Address of a REST call or console page"
    SDK_PLUGIN = "MLO-105", "Credentials from a plugin of the MLflow SDK"
    CONFLICTING_SETTINGS = "MLO-106", "Conflicting settings"
    INVALID_CREDENTIAL = "MLO-107", "Invalid credential"
    CREDENTIALS_FILE = "MLO-108", "Unreadable MLflow credentials file"
    CREDENTIAL_PROVIDER = "MLO-109", "Unusable credential provider"
    TRACER_PROVIDER = "MLO-110", "Unsupported tracer provider"
    SCHEME_MISSING = "MLO-111", "Address without http:// or https://"

    NAME_NOT_RESOLVED = "MLO-201", "Server name not resolved"
    CONNECTION_REFUSED = "MLO-202", "Connection refused"
    CONNECT_TIMEOUT = "MLO-203", "Connection timeout"
    CERTIFICATE_UNTRUSTED = "MLO-204", "Server certificate not trusted"
    CERTIFICATE_EXPIRED = "MLO-205", "Server certificate expired"
    CERTIFICATE_HOST_MISMATCH = "MLO-206", "Server certificate for another name"
    NOT_TLS = "MLO-207", "No TLS at an https address"
    PROXY = "MLO-208", "Proxy connection failed"
    CONNECTION_CLOSED = "MLO-209", "Connection closed without response"
    RESPONSE_TIMEOUT = "MLO-210", "Response timeout"
    INVALID_REQUEST = "MLO-211", "Request could not be made"
    TLS_REQUIRED = "MLO-212", "TLS at an http address"
    NOT_HTTP = "MLO-213", "No HTTP at this port"
    HTTP2_ONLY = "MLO-214", "gRPC or HTTP/2 at this port"
    CERTIFICATE_FILE = "MLO-215", "Unusable certificate file"
    TLS_REJECTED = "MLO-216", "TLS connection rejected by the server"
    SOCKS_UNAVAILABLE = "MLO-217", "SOCKS proxy without PySocks"

    UNAUTHENTICATED = "MLO-301", "Authentication failed"
    CREDENTIAL_UNAVAILABLE = "MLO-302", "Credential unavailable"
    PROXY_UNAUTHENTICATED = "MLO-303", "Proxy authentication required"
    GATEWAY_UNAUTHENTICATED = "MLO-304", "Token rejected by a gateway"

    REDIRECTED = "MLO-401", "Redirect"
    HTML_PAGE = "MLO-402", "Response not from MLflow"
    NO_OTLP_ENDPOINT = "MLO-403", "No OTLP endpoint at this address"
    FILE_STORE = "MLO-404", "MLflow with a file store"
    HOST_NOT_ALLOWED = "MLO-405", "Host name not allowed by MLflow"
    WORKSPACES_DISABLED = "MLO-406", "Workspaces disabled"
    WORKSPACE_NOT_FOUND = "MLO-407", "Workspace not found"
    WORKSPACE_REQUIRED = "MLO-408", "Workspace required"
    EXPERIMENT_NOT_FOUND = "MLO-409", "Experiment not found"
    EXPERIMENT_DELETED = "MLO-410", "Experiment deleted"
    EXPERIMENT_REQUIRED = "MLO-411", "Experiment required"
    PERMISSION_DENIED = "MLO-412", "Permission denied"
    LOOKUP_DENIED = "MLO-413", "Experiment lookup denied"
    NO_MLFLOW_SERVER = "MLO-414", "No MLflow server for the experiment lookup"
    NO_EXPERIMENT_SET = "MLO-415", "No experiment set"
    DESTINATION_REJECTED = "MLO-416", "Destination rejected"
    TRACE_IN_OTHER_EXPERIMENT = "MLO-417", "Trace in another experiment"
    TRACE_IN_OTHER_WORKSPACE = "MLO-418", "Trace in another workspace"
    NOT_MLFLOW = "MLO-419", "Not an MLflow server"
    OTLP_UNSUPPORTED = "MLO-420", "MLflow without OpenTelemetry"
    GATEWAY_DENIED = "MLO-421", "Destination denied by a gateway"

    SERVER_UNAVAILABLE = "MLO-501", "Server unavailable"
    DATABASE_UNAVAILABLE = "MLO-502", "Server database unavailable"
    DATABASE_DAMAGED = "MLO-503", "Server database damaged"
    RATE_LIMITED = "MLO-504", "Too many requests"
    SERVER_ERROR = "MLO-505", "Internal server error"
    SPAN_REJECTED = "MLO-506", "Span rejected"
    REQUEST_TOO_LARGE = "MLO-507", "Request too large"
    PARTIAL_SUCCESS = "MLO-508", "Partial success"
    SERVER_MESSAGE = "MLO-509", "Server message"
    COMPRESSION_UNSUPPORTED = "MLO-510", "Compression not supported"
    POSSIBLE_DUPLICATE = "MLO-511", "Tokens may be counted twice"
    NOT_DELIVERED = "MLO-512", "Spans not delivered"
    AUTHORIZATION_CHECK_FAILED = "MLO-513", "Permission check failed on the server"
    TRACE_METADATA = "MLO-514", "Trace metadata not updated"
    FEEDBACK_DROPPED = "MLO-515", "Feedback dropped"
    ATTACHMENT_UPLOAD = "MLO-516", "Attachments not uploaded"

    JOURNAL_UNAVAILABLE = "MLO-601", "Journal not written"
    SPOOL_UNAVAILABLE = "MLO-602", "Spool not usable"
    SPOOL_FULL = "MLO-603", "Spool full"
    SPOOL_EXPIRED = "MLO-604", "Spans on disk expired"
    SPOOL_FILE_UNREADABLE = "MLO-605", "Unreadable spool file"
    SPOOL_SHARED = "MLO-606", "Spool shared by different credentials"
    GATEWAY_UNAVAILABLE = "MLO-607", "Gateway takes no spans"

    SPANS_DROPPED = "MLO-701", "Spans dropped in the application"
    EXPORT_DISABLED = "MLO-702", "Export disabled"
    ATTRIBUTES_DROPPED = "MLO-703", "Attributes dropped by the span limit"
    VALUES_DROPPED = "MLO-704", "Attribute values dropped"
    INSTRUMENTATION_MISSING = "MLO-705", "Instrumentation not installed"
    INSTRUMENTATION_FAILED = "MLO-706", "Instrumentation failed"
    SERVICE_NAME_IGNORED = "MLO-707", "service_name= ignored"
    CONTENT_NOT_RECORDED = "MLO-708", "Inputs, outputs or documents not recorded"
    INVALID_TRACE_CONTEXT = "MLO-709", "Invalid trace_context() argument"
    TRACE_FILTERED = "MLO-710", "Trace filtered"
    CLOCK_SKEW = "MLO-711", "Clock skew"
    DESTINATION_TOO_LATE = "MLO-712", "Destination set too late"
    MASK_FAILED = "MLO-713", "Mask failed"
    UNKNOWN_KIND = "MLO-714", "Unknown span kind"
    NOT_SAMPLED_BY_CALLER = "MLO-715", "Trace not sampled by the caller"
    THREADS_DISABLED = "MLO-716", "Threads disabled by uWSGI"
    TRACE_NOT_STORED = "MLO-717", "Trace not in MLflow yet"
    READER_FAILED = "MLO-718", "Reader of another package failed"

    EXPORT_CONFIGURED = "MLO-801", "Export configured"
    INSTRUMENTED = "MLO-802", "Instrumentations enabled"
    EXPERIMENT_CREATED = "MLO-803", "Experiment created"
    RECOVERED = "MLO-804", "Problem resolved"
    PIPELINE_REPLACED = "MLO-805", "Pipeline replaced"

    INTERNAL_ERROR = "MLO-901", "Internal error"

    def __init__(self, number: str, title: str) -> None:
        self.number, self.title = number, title

    def __str__(self) -> str:
        return self.number


def add_code(code: MessageCode, message: str) -> str:
    return f"{message} [{code}]"
