"""Ready-made expressions for what often should not be kept: e-mail addresses, keys, card and phone numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

# Bounded everywhere, so that no text takes more than linear time.
_EMAIL = r"(?<![\w.+-])[\w.+-]{1,320}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
_JWT = r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*"
_BEARER = r"(?<=[Bb]earer )[\w.~+/=-]{8,}|(?<=BEARER )[\w.~+/=-]{8,}|(?<=[Bb]asic )[A-Za-z0-9+/]{16,}={0,2}"
_PRIVATE = (
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----)){0,20000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_PREFIXED = (
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[\w-]{16,}"  # OpenAI, Anthropic, LangFuse
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|xox[abeoprs]-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}"  # Google
    r"|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}|xai-\w{20,}|pypi-[\w-]{20,}|npm_[A-Za-z0-9]{20,}"
    r"|(?:sk|pk|rk)_(?:live|test)_\w{10,}|whsec_\w{10,}"  # Stripe
    r"|dapi[0-9a-f]{32}"  # Databricks
    r")"
)
# Digits as people write them, with single spaces or hyphens between; what of it is a card's number is looked at then.
_DIGITS = r"(?<![\w.+-])\d(?:[ -]?\d){12,5000}(?![\w]|\.\d)"
_CARD_DIGITS = range(13, 20)
# With a country's code; or in groups as in North America. Bare runs of digits are ids and times more often than not.
_PHONE = (
    r"(?<![\w+])(?:\+|00)[1-9]\d{0,2}[ .()/-]{0,3}\d(?:[ .()/-]{0,2}\d){5,12}(?![\w-])"
    r"|(?<![\w.+-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)"
)


class Expression(NamedTuple):
    """An expression and what stands in place of what it finds: a text, or a function of the match."""

    pattern: re.Pattern[str]
    instead: str | Callable[[re.Match[str]], str]


def is_card_number(digits: str) -> bool:
    """Whether digits are as many as a card's number has, begin as one and add up as one does (Luhn)."""
    if len(digits) not in _CARD_DIGITS or digits[0] not in "3456":
        return False
    doubled = [int(each) * 2 - 9 * (each > "4") for each in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _without_cards(match: re.Match[str]) -> str:
    """Groups of digits without those that together are a card's number; a date or a count may stand beside it."""
    pieces = re.split("([ -])", match[0])
    groups = pieces[::2]
    first = 0
    while first < len(groups):
        digits = ""
        for last in range(first, len(groups)):
            digits += groups[last]
            if len(digits) not in range(_CARD_DIGITS.stop):
                break
            if is_card_number(digits):
                pieces[2 * first : 2 * last + 1] = ["[card]", *[""] * (2 * (last - first))]
                first = last
                break
        first += 1
    return "".join(pieces)


_READY_MADE: dict[str, tuple[Expression, ...]] = {
    "email": (Expression(re.compile(_EMAIL), "[email]"),),
    "keys": (
        Expression(re.compile(_PRIVATE), "[key]"),
        Expression(re.compile(_JWT), "[key]"),
        Expression(re.compile(_BEARER), "[key]"),
        Expression(re.compile(_PREFIXED), "[key]"),
    ),
    "cards": (Expression(re.compile(_DIGITS, re.ASCII), _without_cards),),
    "phones": (Expression(re.compile(_PHONE, re.ASCII), "[phone]"),),
}


def _hidden(match: re.Match[str]) -> str:
    return "[masked]" if match[0] else ""  # an expression may match the empty text


def masking(wanted: Iterable[str | re.Pattern[str]]) -> Callable[[str], str]:
    """A function that masks what some expressions find.

    Args:
        wanted: Names of ready-made expressions (`email`, `keys`, `cards`, `phones`), and expressions of one's own.
    """
    expressions: list[Expression] = []
    for each in wanted:
        expressions += _READY_MADE[each] if isinstance(each, str) else (Expression(each, _hidden),)

    def masked(text: str) -> str:
        for pattern, instead in expressions:
            text = pattern.sub(instead, text)
        return text

    return masked
