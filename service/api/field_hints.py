"""Hints for fields that a request does not have: names of other tools first, then the nearest name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import get_args

from pydantic import BaseModel

# Names that other tools use. What is compared has neither capitals nor signs: cfgScale is cfg_scale.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_inference_steps": ("steps", "num_steps", "inference_steps", "sampling_steps", "denoising_steps"),
    "guidance_scale": ("cfg", "cfg_scale", "guidance", "true_cfg_scale", "classifier_free_guidance", "scale"),
    "negative_prompt": ("negative", "negative_text", "uncond_prompt", "neg_prompt", "undesired_content"),
    "num_samples": ("n", "samples", "n_samples", "candidates", "num_candidates", "batch_size", "n_iter", "best_of"),
    "top_k": ("num_images", "num_images_per_prompt", "num_outputs", "number_of_images", "n_images", "winners"),
    "width and height": ("size", "image_size", "resolution", "aspect_ratio", "dimensions"),
    "seed": ("random_seed", "noise_seed", "generator", "subseed"),
    "format": ("output_format", "image_format", "file_format", "output_type"),
    "model": ("checkpoint", "model_name", "model_id", "sd_model_checkpoint", "engine"),
    "judge": ("verifier", "reward_model", "scorer", "judge_model"),
    "depth": ("layers", "num_layers"),
    "deadline_seconds": ("deadline", "timeout", "timeout_seconds", "max_seconds"),
    "effort": ("quality", "preset"),
    "confidence": ("threshold", "probability", "p_yes"),
    "images": ("image", "image[]", "file", "files", "files[]", "picture", "pictures", "urls", "candidates"),
    "max_entrants": ("entrants", "finalists", "most"),
}  # fmt: skip
# What there is no field for, and what to do.
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "the checkpoint's own sampler is used, and no field changes it": (
        "sampler", "sampler_name", "sampler_index", "scheduler", "schedule", "scheduler_name", "eta", "sigmas",
    ),
    "merge it into a checkpoint that a worker serves, and name that one in model": (
        "lora", "loras", "lora_weights", "lora_scale", "lora_path", "adapter", "adapters", "embeddings",
    ),
    "images are drawn from text alone": (
        "image", "init_image", "input_image", "mask", "mask_image", "strength", "denoising_strength", "control_image",
        "controlnet", "ip_adapter_image", "reference_image",
    ),
    "submit one job for each prompt": ("prompts", "prompt_2", "text_prompts"),
}  # fmt: skip


def hint(place: Sequence[str], body: type[BaseModel] | None) -> str:
    """What to write instead of a field that is not there.

    Args:
        place: the field's name, after the names of the objects that hold it.
        body: the request's model.
    """
    known = list(_model_at(place[:-1], body).model_fields) if body is not None else []
    prefix = "".join(f"{part}." for part in place[:-1])
    name = _plain(place[-1])
    for right, others in _NAMES.items():
        if name in map(_plain, (right, *others)) and set(right.split(" and ")) <= set(known):
            return f"use {' and '.join(prefix + part for part in right.split(' and '))}"
    for advice, others in _ELSEWHERE.items():
        if name in map(_plain, others):
            return advice
    close = difflib.get_close_matches(place[-1], known, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"the fields are {', '.join(prefix + one for one in known)}"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _model_at(place: Sequence[str], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the object at this place."""
    for part in place:
        field = model.model_fields.get(part)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model
