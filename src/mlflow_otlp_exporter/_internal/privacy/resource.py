"""Resource attributes that nobody looks for: MLflow makes a tag of each, on every trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Any

Filter = Callable[[Mapping[str, Any]], dict[str, Any]]


def resource_filter(dropped: Sequence[str]) -> Filter | None:
    """What is done to a resource's attributes before they are sent; None for nothing.

    Args:
        dropped: Patterns of keys that are left out, as a shell has them.
    """
    if not dropped:
        return None
    noisy = re.compile("|".join(translate(each) for each in dropped))
    return lambda attributes: {
        key: value for key, value in attributes.items() if not noisy.match(key) and not _is_nameless(key, value)
    }


def _is_nameless(key: str, value: Any) -> bool:
    """Whether this is the name of a service that nobody has named."""
    return key == "service.name" and str(value).startswith("unknown_service")
