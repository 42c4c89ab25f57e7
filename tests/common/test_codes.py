"""Each message has a code, each code has a hint, and docs/troubleshooting.md has all of them."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.hints import HINTS, add_fix
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from support.environments import ROOT
from support.troubleshooting_page import ENTRIES, PAGE, troubleshooting_page

SOURCES = sorted((ROOT / "src" / "mlflow_otlp_exporter").rglob("*.py"))
LOGGED = {"info", "warning", "error", "exception", "critical", "log"}
REPORTED = {"log_once", "report", "report_waiting", "resolve"}
# Where messages pass through that have their codes from elsewhere.
PASSED_ON = {"problem_log.py"}
HEADING = re.compile(r"^### (MLO-\d{3}): (.+)$", re.MULTILINE)
PRINTF = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[sdrfgx]")
# What OpenSSL, SQLite and nginx say, which stands in no test.
FOREIGN = {
    "self-signed certificate",
    "unable to get local issuer certificate",
    "certificate has expired",
    "Hostname mismatch",
    "certificate is not valid for",
    "database or disk is full",
    "No route to host",
    "400 The plain HTTP request was sent to HTTPS port",
    # Composed of an event and `describe_span()`.
    "Dropped span",
    "Export of span",
}


def messages(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Calls that write into the log, each with the function that it stands in."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    owner, name = ast.unparse(call.func.value), call.func.attr
                    if (owner == "logger" and name in LOGGED) or (owner.endswith("problem_log") and name in REPORTED):
                        yield call, function


def has_code(call: ast.Call, function: ast.AST, module: ast.Module) -> bool:
    """Whether a message has a code where it is logged, or where its text is put together or is a constant."""
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    assignments = [node for node in (*ast.walk(function), *module.body) if isinstance(node, ast.Assign)]
    texts = [ast.unparse(node.value) for node in assignments if {ast.unparse(name) for name in node.targets} & names]
    texts.append(ast.unparse(call))
    return any(word in text for text in texts for word in ("MessageCode.", "add_code(", "_explain("))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_message_has_a_code(path: Path) -> None:
    if path.name in PASSED_ON:
        return
    tree = ast.parse(path.read_text())
    lacking = [f"{path.name}:{call.lineno}" for call, function in messages(tree) if not has_code(call, function, tree)]
    assert lacking == []


def test_every_code_is_used() -> None:
    sources = "".join(path.read_text() for path in SOURCES if path.name not in ("codes.py", "hints.py"))
    assert [code.name for code in MessageCode if f"MessageCode.{code.name}" not in sources] == []


def test_codes_are_different() -> None:
    numbers = [code.number for code in MessageCode]
    assert numbers == sorted(set(numbers))
    assert len({code.title for code in MessageCode}) == len(numbers)


def test_troubleshooting_page_is_up_to_date() -> None:
    assert PAGE.read_text() == troubleshooting_page(), "make troubleshooting"


def test_troubleshooting_page_explains_every_code_once() -> None:
    headings = [(code.number, code.title) for code in MessageCode]
    assert HEADING.findall(troubleshooting_page()) == headings


@pytest.mark.parametrize("code", list(MessageCode), ids=str)
def test_code_has_messages_cause_and_fix(code: MessageCode) -> None:
    assert ENTRIES[code].messages
    assert HINTS[code].cause.endswith(".")
    # Information needs no fix.
    assert HINTS[code].fix.endswith(".") or code.number.startswith("MLO-8")


def templates(node: ast.AST) -> Iterator[str]:
    """All strings below a node, with "..." for each value that is formatted into them."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield PRINTF.sub("...", node.value)
    for child in ast.iter_child_nodes(node):
        yield from templates(child)


def strings(*folders: str) -> str:
    """All strings of the modules in folders, without the texts that are compared with them."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = {"hints.py", "troubleshooting_page.py", Path(__file__).name}
    return "\n".join(text for path in paths if path.name not in own for text in templates(ast.parse(path.read_text())))


def fragments(pattern: str) -> Iterator[str]:
    """The parts of a pattern between values, status and punctuation, at which a message is put together."""
    text = re.sub(r"^\d{3}:? |(environment variable|argument) \S+| (?=span ')", "...", pattern)
    for part in re.split(r"'?\.\.\.'?|: |, |\. | \(", text):
        fragment = part.strip(" :;,.()[]'")
        if re.search(r"[A-Za-z]{2}", fragment):
            yield fragment


@pytest.fixture(scope="module")
def strings_of_source() -> str:
    return strings("src")


@pytest.fixture(scope="module")
def strings_of_tests() -> str:
    return strings("tests")


@pytest.mark.parametrize("code", list(MessageCode), ids=str)
def test_message_patterns_occur_in_the_source(code: MessageCode, strings_of_source: str, strings_of_tests: str) -> None:
    for pattern in ENTRIES[code].messages:
        # A pattern that begins with a status is a server's message, as a test has it.
        texts = strings_of_source + (strings_of_tests if re.match(r"\d{3}", pattern) else "")
        missing = [text for text in fragments(pattern) if text not in texts and text not in FOREIGN]
        assert missing == [], f"update ENTRIES[MessageCode.{code.name}] in tests/support/troubleshooting_page.py"


def test_troubleshooting_page_names_only_variables_that_exist() -> None:
    variables = {name for setting in SETTINGS for name in setting.variables}
    assert set(re.findall(r"\bMLFLOW_OTLP_\w+", troubleshooting_page())) <= variables


def test_add_fix_ends_the_message_with_a_full_stop() -> None:
    fix = HINTS[MessageCode.NOT_TLS].fix
    assert add_fix(MessageCode.NOT_TLS, "no TLS") == f"no TLS. {fix} [MLO-207]"
    assert add_fix(MessageCode.NOT_TLS, "https?") == f"https? {fix} [MLO-207]"
    assert add_fix(MessageCode.NOT_TLS, "No TLS.") == f"No TLS. {fix} [MLO-207]"


def test_codes_in_the_guide_and_in_other_documents_exist() -> None:
    numbers = {code.number for code in MessageCode}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert set(re.findall(r"MLO-\d{3}", path.read_text())) <= numbers, path.name


def test_configuration_error_ends_with_its_code() -> None:
    error = ConfigurationError("experiment_id= is 'x'", MessageCode.CONFLICTING_SETTINGS)
    assert (
        str(error)
        == add_code(MessageCode.CONFLICTING_SETTINGS, "experiment_id= is 'x'")
        == "experiment_id= is 'x' [MLO-106]"
    )
    assert str(ConfigurationError("x")) == "x [MLO-101]"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.code) == (str(error), error.code)
