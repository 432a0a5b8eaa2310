"""Latents to images: DC-AE through diffusers.

B images, C latent channels, (h, w) latent grid, (H, W) pixels.
"""

import math
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from bestofn.models.errors import CheckpointError
from bestofn.models.finite import check_finite
from bestofn.models.fused_decoder import fuse
from bestofn.models.weight_files import read_json, refused

# Smaller tiles show seams in DC-AE's images; neighbours share an eighth of a tile.
TILE = 1024
TILE_STRIDE = 896
TILED_ABOVE = 2048
"""Longest side of an image that is decoded as a whole. Beyond it memory would: 26 GiB at 4,096 x 4,096 pixels."""


def is_tiled(width: int, height: int) -> bool:
    """Whether an image of that size is decoded in tiles, which is not the image that untiled diffusers makes.

    The size alone decides and not the free memory, so that a seed gives the same image everywhere.
    """
    return max(width, height) > TILED_ABOVE


class Decoder:
    """The decoding half of a DC-AE."""

    def __init__(self, vae: AutoencoderDC) -> None:
        self.vae = vae
        self.vae.blend_v, self.vae.blend_h = partial(_blended, 2), partial(_blended, 3)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> "Decoder":
        """Load the ``vae`` folder; the encoder half is dropped.

        Raises:
            CheckpointError: a weight is missing or not finite, or the scaling factor is no number above 0.
        """
        factor = read_json(folder / "config.json").get("scaling_factor", 1.0)
        if type(factor) not in (int, float) or not 0 < factor < math.inf:
            raise CheckpointError(f"{folder}: scaling_factor = {factor!r}, a finite number above 0 is needed")
        with refused(folder):
            vae, loading = AutoencoderDC.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, use_safetensors=True
            )
        if loading["missing_keys"]:
            raise CheckpointError(f"{folder}: no weight {sorted(loading['missing_keys'])[0]!r}")
        del vae.encoder
        check_finite(vae, folder)
        vae = vae.to(device).eval()
        if device.type == "cuda":
            fuse(vae.to(memory_format=torch.channels_last))
        return cls(vae)

    @torch.inference_mode()
    def __call__(self, latents: Tensor, *, tiled: bool | None = None, stay: bool = False) -> Tensor:
        """Decode to pixels as diffusers' image processor rounds them.

        Args:
            latents: (B, C, h, w) as the solver leaves them, scaled.
            tiled: decode sides above 1,024 pixels in overlapping tiles; None: as `is_tiled` decides.
            stay: leave the images on the device, where they are when the current stream is done.

        Returns:
            (B, H, W, 3) uint8, on the CPU unless they stay.
        """
        height, width = (side * self.vae.spatial_compression_ratio for side in latents.shape[2:])
        if is_tiled(width, height) if tiled is None else tiled:
            self.vae.enable_tiling(TILE, TILE, TILE_STRIDE, TILE_STRIDE)
        else:
            self.vae.disable_tiling()
        scaled = latents.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        images = to_pixels(self.vae.decode(scaled).sample)
        return images if stay else images.cpu()


def _blended(axis: int, before: Tensor, tile: Tensor, extent: int) -> Tensor:
    """A tile (B, 3, H, W) whose first `extent` lines along an axis fade in over the last ones of the tile before.

    diffusers' result to the bit; it takes three operators a line, 68,000 an image of 4,096 px.
    """
    extent = min(before.shape[axis], tile.shape[axis], extent)
    share = (torch.arange(extent, dtype=torch.float64, device=tile.device) / extent).to(tile.dtype)
    share = share[:, None] if axis == 2 else share
    edge = tile.narrow(axis, 0, extent)
    edge.copy_(before.narrow(axis, before.shape[axis] - extent, extent) * (1 - share) + edge * share)
    return tile


def to_pixels(image: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 -> (B, H, W, 3) uint8, rounded half to even; black where an image is not finite."""
    image = image.where(image.isfinite().all(dim=(1, 2, 3), keepdim=True), -1)
    shown = (image * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
    return (shown * 255).round().to(torch.uint8)
