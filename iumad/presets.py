"""What each method of the comparisons is made of."""

from typing import Any

_UNIAD = {"fusion": "addition", "bottleneck": False, "channel_reduction": "mean"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ib-iumad": {},
    "uniad": {"model": {"condition": "none"} | _UNIAD},
    "iuf": {"model": {"condition": "vit", "lambda_compression": 10.0} | _UNIAD},
    "joint": {"increment": {"strategy": "joint"}},
    "finetune": {"increment": {"strategy": "none"}},
    "memory-bank": {"model": {"kind": "memory-bank"}},
}
"""What each method changes in the defaults, which are IB-IUMAD's. `joint` (all categories at once) and `finetune`
(nothing protects the earlier ones) are its upper and lower bound."""
