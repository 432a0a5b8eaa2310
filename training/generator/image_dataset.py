"""Images with captions as the frozen encoders see them, kept on disk.

C channels, h w latent pixels, L text tokens, E their width.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.models.safetensors_writer import write_json
from bestofn.models.text import PromptTokenizer, encode, load_text_encoder
from bestofn.service.media.codec import decode
from bestofn.training.generator.captioned_images import ImageTextPair, pairs

EMPTY = "empty"

Warn = Callable[[str], object] | None
"""Called with a sentence for the person who trains."""


def pixels(pair: ImageTextPair, width: int, height: int, warn: Warn = None) -> Tensor:
    """The middle of an image at the given size, on white where it is transparent.  # -> (3, H, W) in -1..1

    Raises:
        ValueError: the image cannot be read; with its name.
    """
    fitted = ImageOps.fit(decode(pair.image, pair.name, warn), (width, height), Image.Resampling.LANCZOS)
    values: Tensor = torch.from_numpy(np.array(fitted))
    return values.permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class Features:
    """Encoded pairs in a folder, a file each."""

    folder: Path
    count: int

    def latent(self, index: int) -> Tensor:
        """An image's latent (C, h, w), scaled, float32."""
        stored: dict[str, Tensor] = load_file(self.folder / f"{index}.latent.safetensors")
        return stored["latent"].float()

    def text(self, index: int | None) -> tuple[Tensor, Tensor]:
        """States (L, E) and mask (L,) of a caption; None for the empty prompt."""
        stored = load_file(self.folder / f"{EMPTY if index is None else index}.text.safetensors")
        return stored["states"].float(), stored["mask"]


@torch.inference_mode()
def encode_pairs(
    checkpoint: Checkpoint,
    source: Path,
    folder: Path,
    width: int,
    height: int,
    device: torch.device,
    part: int,
    of: int,
    warn: Warn = None,
) -> int:
    """Write the features of every ``of``-th pair from the ``part``-th on; returns how many pairs there are in all.

    Text encoder and autoencoder are in memory one after the other, in bfloat16 on a GPU, else in float32.

    Raises:
        ValueError: a pair that is not one, an image that cannot be read, or a caption that is too long, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    count = _encode_captions(checkpoint, source, folder, device, dtype, part, of)
    vae: Any = AutoencoderDC.from_pretrained(checkpoint.path / "vae", torch_dtype=dtype, use_safetensors=True)
    vae = vae.to(device).eval()
    for index, pair in enumerate(pairs(source)):
        if index % of == part:
            image = pixels(pair, width, height, warn)
            latent = vae.encode(image[None].to(device, dtype)).latent[0].float() * vae.config.scaling_factor
            save_file({"latent": latent.cpu().contiguous()}, folder / f"{index}.latent.safetensors")
    return count


def _encode_captions(
    checkpoint: Checkpoint, source: Path, folder: Path, device: torch.device, dtype: torch.dtype, part: int, of: int
) -> int:
    calls = checkpoint.call_defaults()
    tokenizer = PromptTokenizer.load(
        checkpoint.path / "tokenizer",
        checkpoint.component("tokenizer"),
        calls.max_sequence_length,
        calls.complex_human_instruction,
    )
    encoder = load_text_encoder(checkpoint.path / "text_encoder", device, dtype)

    def write(name: str, prompt: str, instructed: bool) -> None:
        text = encode(encoder, tokenizer, prompt, instructed)
        stored = {"states": text.states[0].to(dtype).cpu(), "mask": text.mask[0].cpu()}
        save_file({key: value.contiguous() for key, value in stored.items()}, folder / f"{name}.text.safetensors")

    if part == 0:
        write(EMPTY, "", instructed=False)
    count = 0
    for index, pair in enumerate(pairs(source)):
        if index % of == part:
            try:
                write(str(index), pair.caption, instructed=True)
            except ModelError as error:
                raise ModelError(f"{pair.name}: {error}") from None
        count += 1
    return count


def whole(folder: Path, wanted: dict[str, Any]) -> Features | None:
    """The features of a folder, if they are all there and were made of what is wanted; see `close`."""
    index = folder / "index.json"
    if not index.exists():
        return None
    made = json.loads(index.read_text(encoding="utf-8"))
    if made["of"] != wanted:
        raise ModelError(f"{folder} was made of {made['of']}, not of {wanted}: name a new run folder")
    return Features(folder, made["count"])


def close(folder: Path, wanted: dict[str, Any], count: int) -> None:
    """Say that the features of all pairs are there."""
    write_json(folder / "index.json", {"of": wanted, "count": count})
