import textwrap
from pathlib import Path

import pytest

from support.check_names import check_file, check_source
from support.environments import ROOT


def names_in(source: str) -> list[str]:
    return [finding.message.split(":")[0] for finding in check_source(textwrap.dedent(source), Path("module.py"))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("found = 1", ["variable 'found'"]),
        ("_found: int = 1", ["variable '_found'"]),
        ("left_ += 1", ["variable 'left_'"]),
        ("MOST = 1", ["variable 'MOST'"]),
        ("first, (rest, *told) = values", ["variable 'rest'", "variable 'told'"]),
        ("for each in items: ...", ["variable 'each'"]),
        ("names = [each for each in items]", ["variable 'each'"]),
        ("with open(path) as thing: ...", ["variable 'thing'"]),
        ("import module as inner", ["variable 'inner'"]),
        ("from module import name as inner", ["variable 'inner'"]),
        ("print(said := 1)", ["variable 'said'"]),
        ("try: ...\nexcept ValueError as why: ...", ["variable 'why'"]),
        ("match value:\n case [known, *kept]: ...", ["variable 'known'", "variable 'kept'"]),
        ("match value:\n case {'a': 1, **rest}: ...", ["variable 'rest'"]),
        ("match value:\n case int() as given: ...", ["variable 'given'"]),
        ("def call():\n global _told", ["variable '_told'"]),
        ("def call(found, /, given=1, *made, wanted, **kept): ...", ["found", "made", "kept", "given", "wanted"]),
        ("call(key=lambda each: each)", ["parameter 'each'"]),
        ("call(said=1)", ["keyword argument 'said'"]),
        ("self.told = 1", ["attribute 'told'"]),
        ("class Result:\n found: int", ["variable 'found'"]),
        ("class Known: ...", ["class 'Known'"]),
        ("def turn(): ...", ["function 'turn'"]),
        ("async def _given(): ...", ["function '_given'"]),
    ],
)
def test_check_source_banned_name_is_a_finding(source: str, expected: list[str]) -> None:
    messages = names_in(source)
    assert len(messages) == len(expected)
    assert all(any(name in message for message in messages) for name in expected)


@pytest.mark.parametrize(
    "source",
    [
        "from hypothesis import given",
        "@given(integers())\ndef test_numbers(number): ...",
        "print(other.found, known)",
        "found_spans, left_margin, turns = 1, 2, 3",
        "match value:\n case Result(found=1): ...",
        "call(**kept)",
    ],
)
def test_check_source_use_or_longer_name_is_no_finding(source: str) -> None:
    assert names_in(source) == []


@pytest.mark.parametrize(
    ("source", "is_finding"),
    [
        ("def opened(): ...", True),
        ("def _failed(): ...", True),
        ("async def written(): ...", True),
        ("def __taken(self): ...", True),
        ("class Buffer:\n @property\n def closed(self): ...", True),
        ("def outer():\n def passed(): ...", True),
        ("def record_dropped(): ...", False),
        ("def is_closed(): ...", False),
        ("def need(): ...", False),
        ("def embed(): ...", False),
        ("def read(): ...", False),
        ("def put(): ...", False),
        ("def test_passed(): ...", False),
        ("passed = 1", False),
        ("def traced(): ...", False),
    ],
)
def test_check_source_bare_participle_as_function_is_a_finding(source: str, is_finding: bool) -> None:
    assert len(names_in(source)) == is_finding


def test_check_source_finding_has_the_line_of_the_name() -> None:
    (finding,) = check_source("first = 1\n(\n    self\n    .found\n) = 2\n", Path("module.py"))
    assert (finding.line, str(finding)) == (4, "module.py:4: attribute 'found': name it after what it holds or does")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("given.py", ["module 'given'"]),
        ("_given.py", ["module '_given'"]),
        ("test_given.py", ["module 'given'"]),
        ("given_values.py", []),
    ],
)
def test_check_file_banned_module_name_is_a_finding(tmp_path: Path, path: str, expected: list[str]) -> None:
    (tmp_path / path).write_text("", encoding="utf-8")
    assert [finding.message.split(":")[0] for finding in check_file(tmp_path / path)] == expected


def test_check_file_banned_folder_name_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.check_names.ROOT", tmp_path)
    (tmp_path / "src" / "rest").mkdir(parents=True)
    (path := tmp_path / "src" / "rest" / "module.py").write_text("", encoding="utf-8")
    assert [finding.message.split(":")[0] for finding in check_file(path)] == ["module 'rest'"]


def test_check_file_on_its_own_sources_has_no_findings() -> None:
    for name in ("check_names", "check_words", "findings", "test_check_names", "test_check_words"):
        assert list(check_file(ROOT / "tests" / "support" / f"{name}.py")) == []
