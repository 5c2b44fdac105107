"""What makes two configurations the same experiment: the hash under which results are stored and found."""

import hashlib
import json
from typing import Any

NEUTRAL: dict[str, dict[str, Any]] = {
    "model": {"depth_features": "backbone", "lambda_compression": 0.0},
    "training": {"compile": False},
    "increment": {"svd_threshold": 0.99},
    "perturb": {"redundant": 0.0, "noise_cells": 8, "spurious": 0.0, "where": "increments"},
}
"""Section -> key -> value at which the key changes nothing. There it is left out of the hash, so that results
stored before the key existed are still found."""


def without_neutral(content: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration in JSON types without the keys at their neutral value, and without empty sections."""
    kept = {section: _changed(section, keys) for section, keys in content.items()}
    return {section: keys for section, keys in kept.items() if keys != {}}


def _changed(section: str, keys: Any) -> Any:
    if section not in NEUTRAL:
        return keys
    neutral = NEUTRAL[section]
    return {k: value for k, value in keys.items() if k not in neutral or value != neutral[k]}


def stable_hash(content: Any) -> str:
    """Twelve hex digits of the SHA-256 of the content's canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
