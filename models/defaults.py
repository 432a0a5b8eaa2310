"""Call defaults of a checkpoint, its work in FLOPs, and the dtype of each of its parts."""

from dataclasses import dataclass

import torch

FOLDERS = {"text_encoder": "text_encoder", "transformer": "transformer", "decoder": "vae"}


@dataclass(frozen=True)
class Defaults:
    """A checkpoint's call defaults and limits; sizes in pixels."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    size_multiple: int
    token_limit: int  # tokens of a prompt, control tokens included
    max_sequence_length: int  # padded text length of every context


@dataclass(frozen=True)
class Flops:
    """Floating-point operations: of one row's forward, one image's decode, one prompt's encoding and context."""

    forward: int
    decode: int
    text: int


def part_dtypes(device: torch.device, transformer_stored: str, low_precision: bool = False) -> dict[str, torch.dtype]:
    """The dtype that each part computes in.

    On a CPU float32, which every CPU has; with `low_precision` the transformer's is bfloat16. On a GPU bfloat16:
    Gemma-2 and DC-AE overflow float16, so they never run in it. Only a transformer stored in float16 (SANA-1.0) keeps
    float16, because it relies on that format's clamp.
    """
    if device.type != "cuda":
        narrowed = {"transformer": torch.bfloat16} if low_precision else {}
        return dict.fromkeys(FOLDERS, torch.float32) | narrowed
    narrow = torch.float16 if transformer_stored == "F16" else torch.bfloat16
    return {"text_encoder": torch.bfloat16, "transformer": narrow, "decoder": torch.bfloat16}
