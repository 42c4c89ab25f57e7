"""Each message has a code, and docs/troubleshooting.md explains each code."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_otlp_exporter import ConfigurationError
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "mlflow_otlp_exporter").rglob("*.py"))
GUIDE = (ROOT / "docs" / "troubleshooting.md").read_text()
LOGGED = {"info", "warning", "error", "exception", "critical", "log"}
REPORTED = {"once", "problem", "waiting", "solved"}
# Where messages pass through that have their codes from elsewhere.
PASSED_ON = {"problem_log.py"}
HEADING = re.compile(r"^### (MLO-\d{3}): (.+)$", re.MULTILINE)


def messages(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Calls that write into the log, each with the function that it stands in."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    owner, name = ast.unparse(call.func.value), call.func.attr
                    if (owner == "logger" and name in LOGGED) or (owner.endswith("report") and name in REPORTED):
                        yield call, function


def has_code(call: ast.Call, function: ast.AST) -> bool:
    """Whether a message has a code where it is logged, or where its text is put together."""
    names = {each.id for each in ast.walk(call) if isinstance(each, ast.Name)}
    assigned = [each for each in ast.walk(function) if isinstance(each, ast.Assign)]
    texts = [ast.unparse(each.value) for each in assigned if {ast.unparse(one) for one in each.targets} & names]
    texts.append(ast.unparse(call))
    return any(word in text for text in texts for word in ("MessageCode.", "add_code(", "_explain("))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_message_has_a_code(path: Path) -> None:
    if path.name in PASSED_ON:
        return
    tree = ast.parse(path.read_text())
    lacking = [f"{path.name}:{call.lineno}" for call, function in messages(tree) if not has_code(call, function)]
    assert lacking == []


def test_every_code_is_used() -> None:
    sources = "".join(path.read_text() for path in SOURCES if path.name != "codes.py")
    assert [code.name for code in MessageCode if f"MessageCode.{code.name}" not in sources] == []


def test_codes_are_different() -> None:
    numbers = [code.number for code in MessageCode]
    assert numbers == sorted(set(numbers))
    assert len({code.title for code in MessageCode}) == len(numbers)


def test_guide_explains_every_code_and_no_other() -> None:
    assert dict(HEADING.findall(GUIDE)) == {code.number: code.title for code in MessageCode}
    assert [number for number, _ in HEADING.findall(GUIDE)] == [code.number for code in MessageCode]


@pytest.mark.parametrize("code", list(MessageCode), ids=str)
def test_guide_says_what_to_do(code: MessageCode) -> None:
    section = GUIDE.split(f"### {code.number}: ", 1)[1].split("\n#", 1)[0]
    said = section.partition("\n")[2]
    # What is said, why, and what to do; notes of what was done need no cure.
    assert "**Message:**" in said
    assert "**Cause:**" in said
    assert "**Fix:**" in said or code.number.startswith("MLO-8")


def test_codes_in_the_guide_and_in_other_documents_exist() -> None:
    known = {code.number for code in MessageCode}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert set(re.findall(r"MLO-\d{3}", path.read_text())) <= known, path.name


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
