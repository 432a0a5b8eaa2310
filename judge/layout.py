"""What the files of a judge's folder are called, and which prefix names it; needs no torch."""

from collections.abc import Mapping
from typing import Any, Literal

PARTS = ("llm", "vision_tower", "mm_projector")
MODEL_TYPES = ("vila", "llava_llama")
CLIP_TYPES = ("clip", "siglip", "siglip2")
PROJECTORS = ("mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix")


def prefix_of(config: Mapping[str, Any]) -> Literal["vila", "clip"] | None:
    """The prefix that names a judge with this config.json; None if the file does not say."""
    kind, classes = config.get("model_type"), config.get("architectures")
    if kind in MODEL_TYPES:
        return "vila"
    classifies = "ForImageClassification" in str(classes)  # an image checker
    return "clip" if kind in CLIP_TYPES and not classifies else None
