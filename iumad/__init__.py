"""Incremental unified multimodal anomaly detection: IB-IUMAD and its study.

`Predictor` reads a model file that `iumad fit` made; see the book's page on one's own images.
"""

from typing import Any

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """`Predictor`, imported when it is asked for: it needs torch, and reading results does not."""
    if name == "Predictor":
        from iumad.inspection.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'iumad' has no attribute {name!r}")
