"""Resource attributes that nobody looks for: MLflow makes a tag of each, on every trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Any

from mlflow_otlp_exporter.privacy._mask import Mask

Filter = Callable[[Mapping[str, Any]], dict[str, Any]]


def resource_filter(dropped: Sequence[str], mask: Mask | None) -> Filter | None:
    """What is done to a resource's attributes before they are sent; None for nothing.

    Args:
        dropped: Patterns of keys that are left out, as a shell has them.
        mask: What masks the others.
    """
    if not dropped and mask is None:
        return None
    noisy = re.compile("|".join(translate(each) for each in dropped)) if dropped else None

    def kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: value for key, value in attributes.items() if noisy is None or not noisy.match(key)}
        return found if mask is None else {mask.name(key): mask.value(key, value) for key, value in found.items()}

    return kept
