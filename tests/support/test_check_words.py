from pathlib import Path

import pytest

from support.check_words import PHRASES, check_file, check_text
from support.environments import ROOT
from support.findings import run_check

# The phrases come from the data file: written here, they would be findings themselves.
TWO_WORDS = [phrase.split() for phrase in PHRASES if " " in phrase]


def phrases_in(text: str) -> list[str]:
    return [finding.message.split("'")[1] for finding in check_text(text, Path("page.md"))]


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize(
    "text", ["{}", "A {} is here.", "({}, or not)", '"{}"', "# {}", "a-{}-b", r"'line\n{}\n'", "test_{}_waits", "_{}_"]
)
def test_check_text_phrase_in_any_place_is_a_finding(text: str, phrase: str) -> None:
    for written in (phrase, phrase.upper(), phrase.title()):
        assert phrases_in(text.format(written)) == [phrase]


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize("text", ["x{}", "{}x", "some{}", "{}ation", "é{}"])
def test_check_text_part_of_another_word_is_no_finding(text: str, phrase: str) -> None:
    assert phrase not in phrases_in(text.format(phrase))


@pytest.mark.parametrize("words", TWO_WORDS)
@pytest.mark.parametrize(
    "gap",
    [
        "  ",
        "_",
        "\n",
        "\n    ",
        "\n# ",
        "\n    # ",
        "\n> ",
        r"\n",
        '"\n    "',
        " '\n    f'",
        ' "\n    rb"',
        '"  # a comment\n    "',
    ],
)
def test_check_text_phrase_over_two_lines_is_a_finding(words: list[str], gap: str) -> None:
    assert phrases_in(gap.join(words)) == [" ".join(words)]


@pytest.mark.parametrize("words", TWO_WORDS)
@pytest.mark.parametrize("gap", [" not ", ", ", ". ", '": "', "-", ""])
def test_check_text_words_apart_are_no_finding(words: list[str], gap: str) -> None:
    assert phrases_in(gap.join(words)) == []


def test_check_text_finding_has_the_line_of_its_first_word() -> None:
    first, second = TWO_WORDS[0]
    (finding,) = check_text(f"one\ntwo {first}\n{second}\n", Path("page.md"))
    assert str(finding) == f"page.md:2: '{first} {second}': use plain words"


def test_check_file_recorded_traces_are_no_prose() -> None:
    path = next((ROOT / "tests" / "corpus").rglob("*.json"))
    assert list(check_file(path)) == []


def test_run_check_with_findings_exits_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text(f"one\n{PHRASES[0]}\n", encoding="utf-8")
    (tmp_path / "docs" / "a.md").write_text(PHRASES[0], encoding="utf-8")
    (tmp_path / "docs" / "c.json").write_text(PHRASES[0], encoding="utf-8")
    assert run_check(check_file, [str(tmp_path)], [], {".md"}) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{tmp_path}/docs/a.md:1",
        f"{tmp_path}/docs/b.md:2",
        "2 findings",
    ]


def test_run_check_without_findings_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("plain words\n", encoding="utf-8")
    assert run_check(check_file, [str(tmp_path)], [], {".md"}) == 0
    assert capsys.readouterr().out == "0 findings\n"
