"""The public names, pinned: a change of this page is a change for users, and belongs into CHANGELOG.md."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest

import mlflow_otlp_exporter
from mlflow_otlp_exporter import testing

# Parameters of each public function.
FUNCTIONS: Mapping[str, str] = {
    "configure": "*, tracking_uri, experiment, experiment_id, workspace, service_name, tracer_provider, credentials, "
    "headers, mask, auto_instrument, sampling_ratio, ignore_caller_sampling, noise, enabled, create_experiment, "
    "verbose, trace_info, attachments, spool, durability, exporter",
    "current_trace_id": "",
    "flush": "timeout",
    "log_expectation": "trace_id, name, value, *, source, source_type, metadata, span_id, workspace",
    "log_feedback": "trace_id, name, value, *, rationale, source, source_type, metadata, span_id, workspace",
    "read_attributes": "reader, attributes, *, name, scope, events",
    "recording": "**arguments",
    "set_documents": "documents, *, span",
    "set_inputs": "value, *, span",
    "set_outputs": "value, *, span",
    "set_usage": "*, input_tokens, output_tokens, total_tokens, cache_read_tokens, cache_write_tokens, "
    "reasoning_tokens, model, provider, span",
    "shutdown": "timeout",
    "using_readers": "*readers",
    "traced": "function, /, *, kind, name, capture_inputs, capture_outputs, redact, attributes, sampled, "
    "output_reducer",
    "update_trace": "*, tags, session, user, name",
}
# Attributes and properties of each public class.
ATTRIBUTES: Mapping[str, str] = {
    "ConfigurationError": "code",
    "FlushResult": "delivered, dropped, pending, spooled",
    "MLflowSpanExporter": "",
    "MLflowSpanProcessor": "",
    "RecordedDocument": "content, id, metadata, score",
    "RecordedSpan": "attributes, end, events, experiment, inputs, kind, message, name, outputs, parent_id, resource, "
    "run_id, scope, span_id, start, status, trace_id, workspace",
    "RecordedToolCall": "arguments, is_error, name, result",
    "RecordedTrace": "documents, root, session, spans, tags, tool_calls, trace_id, tree, usage, user",
    "RecordedUsage": "input_tokens, output_tokens, total_tokens",
    "Recording": "assessments, endpoint, spans, telemetry, trace, traces",
    "RecordingEndpoint": "assessments, spans, status, traces, url",
    "Stats": "attachments_failed, attachments_uploaded, delivered, dropped, feedback, feedback_dropped, filtered, "
    "metadata_updates, metadata_updates_dropped, requests, retries, spooled, unsampled, values_dropped, "
    "values_repaired",
    "Telemetry": "exporter, is_closed, tracer_provider",
    "span": "",
    "trace_context": "",
}
# Parameters of each public method, and of the constructors that users call.
METHODS: Mapping[str, Mapping[str, str]] = {
    "MLflowSpanExporter": {
        "__init__": "endpoint, certificate_file, client_key_file, client_certificate_file, headers, timeout, "
        "compression, session, *, meter_provider, max_request_size, tracking_uri, experiment, experiment_id, "
        "workspace, run_id, credentials, create_experiment, enrich, compact, trace_info, attachments, spool, "
        "spool_dir, durability, mask",
        "export": "spans",
        "force_flush": "timeout_millis",
        "shutdown": "timeout_millis",
        "stats": "",
        "trace_url": "trace_id, resource_attributes, *, check",
    },
    "MLflowSpanProcessor": {
        "__init__": "exporter, *, linger, hold, buffer_spans, buffer_bytes, sampling_ratio, noise, baggage",
        "force_flush": "timeout_millis",
        "on_end": "span",
        "on_start": "span, parent_context",
        "shutdown": "timeout_millis",
    },
    "RecordedTrace": {
        "assert_documents": "*expected",
        "assert_tokens": "*, at_most, at_least",
        "assert_tool_called": "name, arguments, *, times",
        "span": "name",
    },
    "Recording": {"clear": ""},
    "RecordingEndpoint": {"__init__": "", "clear": "", "close": "", "wait_for": "count, *, timeout"},
    "Telemetry": {
        "flush": "timeout",
        "log_expectation": "trace_id, name, value, *, source, source_type, metadata, span_id, workspace",
        "log_feedback": "trace_id, name, value, *, rationale, source, source_type, metadata, span_id, workspace",
        "shutdown": "timeout",
        "stats": "",
        "trace_url": "trace_id, *, check",
    },
    "span": {"__init__": "name, *, kind, inputs, attributes"},
    "trace_context": {
        "__init__": "*, session, user, tags, metadata, experiment, workspace, experiment_id, run_id, prompt, baggage",
    },
}


def public_objects() -> Mapping[str, Any]:
    modules: tuple[ModuleType, ...] = (mlflow_otlp_exporter, testing)
    return {name: getattr(module, name) for module in modules for name in module.__all__ if name != "__version__"}


def parameters_of(function: Callable[..., Any], *, is_method: bool = False) -> str:
    """The parameters' names and markers, as a signature has them."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters[is_method:]))[1:-1]


def instance_attributes(cls: type) -> Iterator[str]:
    """Attributes that a class declares, or that its methods assign to self."""
    yield from inspect.get_annotations(cls)
    functions = [member.fget if isinstance(member, property) else member for member in vars(cls).values()]
    for function in map(inspect.unwrap, filter(inspect.isfunction, functions)):
        if function.__code__.co_filename != "<string>":  # generated by dataclasses
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
                match node:
                    case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                        yield name
                    case _:
                        pass


def public_members(cls: type) -> set[str]:
    """Names of a class and its bases, except Python's own."""
    bases = [base for base in cls.__mro__ if base.__module__ != "builtins"]
    names = {name for base in bases for name in vars(base)}
    for base in bases:
        if base.__module__.startswith("mlflow_otlp_exporter"):
            names.update(instance_attributes(base))
    return {name for name in names if not name.startswith("_")}


def upstream_members(cls: type) -> set[str]:
    """Names of the classes of OpenTelemetry that a class extends: some are newer than the oldest that is supported."""
    return {name for base in cls.__mro__ if base.__module__.startswith("opentelemetry.") for name in vars(base)}


def test_all_names_of_the_packages_are_pinned() -> None:
    assert sorted(mlflow_otlp_exporter.__all__) == [
        "ConfigurationError",
        "FlushResult",
        "MLflowSpanExporter",
        "MLflowSpanProcessor",
        "Stats",
        "Telemetry",
        "__version__",
        "configure",
        "current_trace_id",
        "flush",
        "log_expectation",
        "log_feedback",
        "set_documents",
        "set_inputs",
        "set_outputs",
        "set_usage",
        "shutdown",
        "span",
        "trace_context",
        "traced",
        "update_trace",
    ]
    assert sorted(testing.__all__) == [
        "RecordedDocument",
        "RecordedSpan",
        "RecordedToolCall",
        "RecordedTrace",
        "RecordedUsage",
        "Recording",
        "RecordingEndpoint",
        "read_attributes",
        "recording",
        "using_readers",
    ]
    assert set(public_objects()) == {*FUNCTIONS, *ATTRIBUTES}


def test_the_package_has_no_other_public_names() -> None:
    names = {name for name in vars(mlflow_otlp_exporter) if not name.startswith("_")}
    assert names - {"readers", "testing", "types"} == {*mlflow_otlp_exporter.__all__} - {"__version__"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_of_a_function_are_pinned(name: str) -> None:
    assert parameters_of(public_objects()[name]) == FUNCTIONS[name]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_members_of_a_class_are_pinned(name: str) -> None:
    cls, methods = public_objects()[name], METHODS.get(name, {})
    members = public_members(cls) - (upstream_members(cls) - {*methods})
    assert {member for member in members if callable(getattr(cls, member, None))} == {*methods} - {"__init__"}
    assert ", ".join(sorted(members - {*methods})) == ATTRIBUTES[name]
    for method, parameters in methods.items():
        assert parameters_of(getattr(cls, method), is_method=True) == parameters


def documented_objects() -> Iterator[tuple[str, Any]]:
    for name, item in public_objects().items():
        yield name, item
        for member_name in sorted(public_members(item)) if isinstance(item, type) else ():
            member = inspect.getattr_static(item, member_name, None)
            is_inherited = any(hasattr(base, member_name) for base in item.__mro__[1:])
            if isinstance(member, property) or (inspect.isfunction(member) and not is_inherited):
                yield f"{name}.{member_name}", member


@pytest.mark.parametrize(("name", "item"), list(documented_objects()))
def test_docstring_of_a_public_object_names_its_parameters(name: str, item: Any) -> None:
    docstring = inspect.getdoc(item)
    assert docstring
    summary, _, remainder = docstring.partition("\n")
    assert summary.endswith((".", ":"))
    assert not remainder.strip() or remainder.startswith("\n")
    if inspect.isfunction(item) or "__init__" in METHODS.get(name, ()):
        parameters = [parameter for parameter in inspect.signature(item).parameters if parameter != "self"]
        section = docstring.partition("Args:\n")[2]
        assert [parameter for parameter in parameters if f"{parameter}:" not in section] == []
    names = [field.name for field in dataclasses.fields(item)] if dataclasses.is_dataclass(item) else ()
    if fields := [field for field in getattr(item, "_fields", names) if not field.startswith("_")]:
        section = docstring.partition("Attributes:\n")[2]
        assert [field for field in fields if f" {field}:" not in section] == []
