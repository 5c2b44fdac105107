"""What makes two configurations the same experiment: the hash under which results are stored and found."""

import hashlib
import json
from typing import Any

NEUTRAL: dict[str, dict[str, Any]] = {
    "model": {"lambda_compression": 0.0, "grow_logits": False},
    "training": {"accumulation": 1, "compile": False},
}
"""Section -> key -> value at which the key changes nothing. There it is left out of the hash, so that results
stored before the key existed are still found."""


def without_neutral(content: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration in JSON types without the keys that are at their neutral value."""
    return {
        section: {
            key: value
            for key, value in keys.items()
            if key not in NEUTRAL[section] or value != NEUTRAL[section][key]
        }
        if section in NEUTRAL
        else keys
        for section, keys in content.items()
    }


def stable_hash(content: Any) -> str:
    """Twelve hex digits of the SHA-256 of the content's canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
