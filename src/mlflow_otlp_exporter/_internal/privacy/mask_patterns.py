"""Patterns of masks for e-mail addresses, keys, card and phone numbers."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

# Each pattern takes linear time on any text (tests/test_patterns_are_linear.py). An underscore is no boundary of
# `\w`, but Markdown writes it around words.
_EMAIL = r"(?<![\w.+-])[\w.+-]{1,320}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
# Matches from the beginning of the word that contains the token: one that began at the token would read the rest of the
# word again for each `eyJ` in it.
_JWT = r"(?<![\w-])(?=[\w-]*?(?<![A-Za-z0-9])eyJ[\w-]{8})[\w-]+\.[\w-]{4,}\.[\w-]*"
_BEARER = r"(?<=[Bb]earer )[\w.~+/=-]{8,}|(?<=BEARER )[\w.~+/=-]{8,}|(?<=[Bb]asic )[A-Za-z0-9+/]{16,}={0,2}"
_PRIVATE_KEY = (
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----)){0,20000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_PREFIXED_KEY = (
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[\w-]{16,}"  # OpenAI, Anthropic, LangFuse
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|xox[abeoprs]-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}"  # Google
    r"|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}|xai-\w{20,}|pypi-[\w-]{20,}|npm_[A-Za-z0-9]{20,}"
    r"|(?:sk|pk|rk)_(?:live|test)_\w{10,}|whsec_\w{10,}"  # Stripe
    r"|dapi[0-9a-f]{32}|sha256~[\w-]{20,}"  # Databricks, OpenShift
    r"|lsv2_[a-z]{2}_\w{20,}|nvapi-[\w-]{20,}|pplx-\w{20,}|tvly-[\w-]{16,}|r8_\w{20,}"  # LangSmith, NVIDIA, ...
    r")"
)
# In the query of a URL, and before its host.
_QUERY_KEY = r"((?:\A|[?&])[\w.-]{0,40}?(?:token|key|secret|password|signature|sig)=)[^\s&#\"'<>\\]{6,}"
_URL_USER = r"(?<=://)[^\s/@:\"'<>\\]{0,100}:[^\s/@\"'<>\\]{1,200}(?=@)"
# Digits with single spaces or hyphens between them; the match is then searched for card numbers.
_DIGITS = r"(?<![A-Za-z0-9.+-])\d(?:[ -]?\d){12,5000}(?![A-Za-z0-9]|\.\d)"
_CARD_LENGTHS, _FIRST_DIGITS = range(13, 20), "3456"
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")  # Luhn: the sum of the digits of the double
# With a country code, or in groups as in North America. Runs of digits without separators are mostly ids and times.
_PHONE = (
    r"(?<![A-Za-z0-9+])(?:\+|00)[1-9]\d{0,2}[ .()/-]{0,3}\d(?:[ .()/-]{0,2}\d){5,12}(?![A-Za-z0-9-])"
    r"|(?<![A-Za-z0-9.+-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![A-Za-z0-9-]|\.\d)"
)


class Replacement(NamedTuple):
    """A pattern, and the text or the function of the match that replaces each match."""

    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    needed: str = ""  # a part of every match: most texts have none


def is_card_number(digits: str) -> bool:
    """Whether digits have the length, the first digit and the check digit (Luhn) of a card number."""
    if len(digits) not in _CARD_LENGTHS or digits[0] not in _FIRST_DIGITS:
        return False
    single, doubled = digits[-1::-2].encode(), digits[-2::-2].encode().translate(_DOUBLED)
    return (sum(single) + sum(doubled) - len(digits) * ord("0")) % 10 == 0


def _replace_cards(match: re.Match[str]) -> str:
    """Replace the groups of digits that together are a card number; a date or a count may be next to them."""
    pieces = re.split("([ -])", match[0])
    groups = pieces[::2]
    first = 0
    while first < len(groups):
        digits = ""
        for last in range(first, len(groups)) if groups[first][0] in _FIRST_DIGITS else ():
            digits += groups[last]
            if len(digits) not in range(_CARD_LENGTHS.stop):
                break
            if len(digits) >= _CARD_LENGTHS.start and is_card_number(digits):
                pieces[2 * first : 2 * last + 1] = ["[card]", *[""] * (2 * (last - first))]
                first = last
                break
        first += 1
    return "".join(pieces)


_BUILT_IN: dict[str, tuple[Replacement, ...]] = {
    "email": (Replacement(re.compile(_EMAIL), "[email]", "@"),),
    "keys": (
        Replacement(re.compile(_PRIVATE_KEY), "[key]", "-----BEGIN "),
        Replacement(re.compile(_JWT), "[key]", "eyJ"),
        Replacement(re.compile(_BEARER), "[key]", " "),
        Replacement(re.compile(_PREFIXED_KEY), "[key]"),
        Replacement(re.compile(_QUERY_KEY, re.IGNORECASE), r"\1[key]", "="),
        Replacement(re.compile(_URL_USER), "[key]", "://"),
    ),
    "cards": (Replacement(re.compile(_DIGITS, re.ASCII), _replace_cards),),
    "phones": (Replacement(re.compile(_PHONE, re.ASCII), "[phone]"),),
}


def _replace_match(match: re.Match[str]) -> str:
    return "[masked]" if match[0] else ""  # a pattern may match the empty text


def make_mask_function(patterns: Iterable[str | re.Pattern[str]]) -> Callable[[str], str]:
    """Make a function that replaces the matches of built-in patterns (by name) and of the user's expressions."""
    replacements: list[Replacement] = []
    for pattern in patterns:
        replacements += _BUILT_IN[pattern] if isinstance(pattern, str) else (Replacement(pattern, _replace_match),)

    def mask_text(text: str) -> str:
        for pattern, replacement, needed in replacements:
            if needed in text:
                text = pattern.sub(replacement, text)
        return text

    return mask_text
