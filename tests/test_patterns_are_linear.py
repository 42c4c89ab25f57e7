"""Regular expressions over text of others: none takes more than linear time, whatever the text."""

import importlib
import json
import pkgutil
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mlflow_otlp_exporter
from mlflow_otlp_exporter._internal.privacy.inline_data import compile_data_url
from mlflow_otlp_exporter._internal.privacy.mask import make_mask

# Patterns that are applied at the beginning of a text only, and the greatest length of that text.
MAX_LENGTHS = {
    "_internal.config.urls._WITHOUT_SCHEME": 100_000,
    "_internal.enrichment.tools._CALL_REPR": 20_000,
    "_internal.mlflow_api.server._VERSION_PATTERN": 39,
    "_internal.privacy.attachment_extractor._MEDIA_TYPE": 1_000_000,
    "_internal.privacy.structural_keys._NUMBERS": 111,  # the longest word
    "_internal.spool.storage._TEMPORARY_NAME": 255,  # a file's name
}
PIECES = [
    *("a", "1", " ", "\n", "\\", "/", ".", "-", "_", "<", "{", "(", '"', "'", "=", ":", ";", "@", "+", "%"),
    *(
        "1 ",
        "4 ",
        "1-",
        "1.",
        "11 ",
        "a.",
        "a-",
        "a@",
        "a.a@",
        "-a",
        "a1",
        "aZ9",
        "<a",
        "<a.",
        "a(",
        "a(a",
        "(555) ",
        "+1 ",
    ),
    *(
        "eyJaaaaaaaa-",
        "eyJaaaaaaaa.",
        "eyJaaaaaaaa.aaaa",
        "_eyJ",
        "-eyJ",
        "eyJaaaaaaaa eyJ",
        "sk-",
        "AKIA",
        "gh",
        "ghp_",
    ),
    *("xoxb-", "Bearer ", "Basic a", "bearer a=", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN A "),
    *("data:", "data:a;", "data:;a=", "data:;base64,", "data:image/", "\\u", "\\\\u00", "\\x", "\\n"),
    *('"role" ', '"tools" ', "role   ", "Message", "content", "'parts' ", "/experiments/1", "/workspaces/", "/api/2.0"),
    *("tr-", "0123456789abcdef", "0123456789abcdef ", "2020-01-01T00:00:00.1", "2020-01-01T00:00:00", "4111 1111 "),
    *("detail", "(", ") ", "[parameters: (", "\n[SQL: ", "[SQL: a", "<html>", "<title", "<title>a", "&lt;", "genai_"),
]


def iter_patterns(value: Any) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from iter_patterns(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iter_patterns(item)


def collect_patterns() -> dict[str, list[re.Pattern[Any]]]:
    """Patterns of all modules, by module and name."""
    patterns = {"compile_data_url": [compile_data_url(10_000)]}
    for module_info in pkgutil.walk_packages(mlflow_otlp_exporter.__path__, mlflow_otlp_exporter.__name__ + "."):
        if module_info.name.endswith("__main__"):
            continue
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            key = f"{module_info.name}.{name}".removeprefix("mlflow_otlp_exporter.")
            if compiled := list(iter_patterns(value)):
                patterns[key] = compiled
    return patterns


PATTERNS = collect_patterns()


def measure_seconds(pattern: re.Pattern[Any], text: Any, method: str) -> float:
    begin = time.thread_time()
    if method == "search":
        for _ in pattern.finditer(text):
            pass
    else:
        pattern.fullmatch(text)
        pattern.match(text)
    return time.thread_time() - begin


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_takes_linear_time_on_any_text(name: str) -> None:
    max_length = MAX_LENGTHS.get(name)
    for pattern in PATTERNS[name]:
        for piece in PIECES:
            # The shorter text first, so that a quadratic pattern fails in a second.
            for length in (max_length,) if max_length else (10_000, 100_000):
                text: Any = (piece * (length // len(piece) + 1))[: length - 1] + "!"
                text = text if isinstance(pattern.pattern, str) else text.encode()
                for method in ("match",) if max_length else ("match", "search"):
                    seconds = measure_seconds(pattern, text, method)
                    assert seconds < max(0.05, length / 1_000_000), (pattern.pattern, piece, length, method)


@pytest.mark.parametrize("piece", PIECES)
def test_masks_take_linear_time_on_any_text(piece: str) -> None:
    mask = make_mask(["email", "keys", "cards", "phones"], lambda error: pytest.fail(str(error)))
    assert mask is not None
    for length in (20_000, 200_000):
        begin = time.thread_time()
        mask.mask_attribute("input.value", piece * (length // len(piece)))
        assert time.thread_time() - begin < max(0.2, length / 500_000), piece


# For each mask: repetitions of the beginnings of its patterns, of almost-matches, and of separators.
ADVERSARIAL_PIECES = {
    "email": ["a", "a.", "a-", "+", "@", "a@", "a@a", "a@a.", "a.a@", "a@a.a@", "é", "\\u0040"],
    "keys": [
        *("eyJ", "eyJaaaaaaaa-", "eyJaaaaaaaa.", "eyJaaaaaaaa.aaaa", "_eyJ", "-eyJ", "eyJaaaaaaaa eyJ", "a-", "a."),
        *("Bearer ", "Bearer a", "Bearer aaaaaaaa ", "Basic a", "Basic aaaaaaaaaaaaaaaa=", "BEARER "),
        *("-----", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----a", "-----BEGIN A "),
        *("sk-", "sk-aaaaaaaaaaaaaaaa", "-sk-", "AKIA", "AKIAAAAA", "ghp_", "github_pat_", "glpat-", "xoxb-", "AIza"),
        *("ya29.", "hf_", "gsk_", "xai-", "pypi-", "npm_", "sk_live_", "whsec_", "dapi", "dapi0000", "sha256~"),
        *("lsv2_pt_", "nvapi-", "pplx-", "tvly-", "r8_"),
        *(
            "?",
            "&",
            "?token",
            "?token=",
            "?token=a",
            "?keykeykeykeykeykeykey",
            "&a.",
            "://",
            "://a:",
            "://a:b@",
            "://:",
        ),
        *("\\", "\\n", "\\u003d", "\\/"),
    ],
    "cards": [
        "4",
        "4 ",
        "4-",
        "4  ",
        "41",
        "4111 1111 ",
        "4111111111111111 ",
        "4111-1111-1111-1111-",
        "4111 1111\\n",
        "4.",
    ],
    "phones": [
        "+",
        "+1",
        "+1 ",
        "+1 2",
        "001",
        "00",
        "(",
        "(555)",
        "(555) ",
        "555-",
        "555 555-",
        "555-555-5555",
        "+1.",
        "()/",
    ],
}


@pytest.mark.parametrize(
    ("name", "piece"), [(name, piece) for name, pieces in ADVERSARIAL_PIECES.items() for piece in pieces]
)
def test_mask_of_a_megabyte_takes_less_than_a_second(name: str, piece: str) -> None:
    mask = make_mask([name], lambda error: pytest.fail(str(error)))
    assert mask is not None
    text = (piece * (1_000_000 // len(piece) + 1))[:1_000_000]
    begin = time.thread_time()
    mask.mask_attribute("input.value", text)
    assert time.thread_time() - begin < 1


@pytest.mark.parametrize(
    "text",
    [
        json.dumps("ada@example.com " * 60_000),
        json.dumps({"a": json.dumps({"b": json.dumps(["ada@example.com\n"] * 30_000)})}),
        json.dumps([4111111111111111] * 55_000),
        'data: {"a": "\\n4111"}\n\n' * 45_000,
        "[" * 1_000_000,
        "[[1," * 250_000,
        '{"a":' * 200_000,
    ],
    ids=lambda text: text[:20],
)
def test_all_masks_of_a_megabyte_of_json_take_less_than_a_second(text: str) -> None:
    mask = make_mask(["email", "keys", "cards", "phones"], lambda error: pytest.fail(str(error)))
    assert mask is not None
    begin = time.thread_time()
    mask.mask_attribute("input.value", text)
    assert time.thread_time() - begin < 1
