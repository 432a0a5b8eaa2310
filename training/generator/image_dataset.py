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
from bestofn.training.distributed import barrier, rank_and_ranks
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


def prepared(
    checkpoint: Checkpoint, source: Path, folder: Path, size: tuple[int, int], device: torch.device, warn: Warn
) -> Features:
    """The features of a folder's pairs: encoded once, each process its share, and kept in another folder.

    Text encoder and autoencoder are in memory one after the other, in bfloat16 on a GPU, else in float32.

    Args:
        checkpoint: whose encoders they are.
        source: folder of the pairs.
        folder: that keeps the features.
        size: width and height of the images in pixels.
        device: the encoders' device.
        warn: gets sentences about images.

    Raises:
        ValueError: a pair that is not one, an image that cannot be read, or a caption that is too long, by name. Or the
            folder has features of something else.
    """
    index = folder / "index.json"
    wanted = {"images": str(source.resolve()), "checkpoint": checkpoint.revision, "size": list(size)}
    made = json.loads(index.read_text(encoding="utf-8")) if index.exists() else None
    if made is not None and made["of"] != wanted:
        raise ModelError(f"{folder} was made of {made['of']}, not of {wanted}: name a new run folder")
    barrier()  # all processes have checked before one writes
    if made is None:
        folder.mkdir(parents=True, exist_ok=True)
        made = {"of": wanted, "count": _encode_captions(checkpoint, source, folder, device)}
        _encode_images(checkpoint, source, folder, size, device, warn)
        barrier()
        if rank_and_ranks()[0] == 0:
            write_json(index, made)
    return Features(folder, made["count"])


@torch.inference_mode()
def _encode_captions(checkpoint: Checkpoint, source: Path, folder: Path, device: torch.device) -> int:
    """Write the states of this process' captions; returns how many pairs there are in all."""
    (part, of), dtype = rank_and_ranks(), _dtype(device)
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


@torch.inference_mode()
def _encode_images(
    checkpoint: Checkpoint, source: Path, folder: Path, size: tuple[int, int], device: torch.device, warn: Warn
) -> None:
    """Write the latents of this process' images."""
    (part, of), dtype = rank_and_ranks(), _dtype(device)
    vae: Any = AutoencoderDC.from_pretrained(checkpoint.path / "vae", torch_dtype=dtype, use_safetensors=True)
    vae = vae.to(device).eval()
    for index, pair in enumerate(pairs(source)):
        if index % of == part:
            image = pixels(pair, *size, warn)
            latent = vae.encode(image[None].to(device, dtype)).latent[0].float() * vae.config.scaling_factor
            save_file({"latent": latent.cpu().contiguous()}, folder / f"{index}.latent.safetensors")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
