"""Trains the shapes autoencoder: a small DC-AE on crops around objects.

Axes: B crops, C channels, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor

from bestofn.models.shapes.scenes import place, sample_wish
from bestofn.models.shapes.world import CANVAS, render
from bestofn.training.optimizers.factory import build_optimizer
from bestofn.training.runs import Progress, Run

LATENT_CHANNELS = 6


@dataclass(frozen=True)
class AutoencoderSettings:
    """One autoencoder run. `steps` covers the whole cosine of the learning rate."""

    folder: Path
    steps: int
    seed: int = 0
    batch_size: int = 128
    crop: int = 24
    scenes: int = 12_000
    learning_rate: float = 2.5e-3
    latent_noise: float = 0.1
    save_every: int = 200


def build_autoencoder() -> AutoencoderDC:
    """The shapes DC-AE: 4x smaller, 6 channels, convolutions only, a decoder wider than the encoder."""
    return AutoencoderDC(
        in_channels=3,
        latent_channels=LATENT_CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(16, 32, 64),
        decoder_block_out_channels=(16, 48, 96),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 2, 2),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(y: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """L1, squared error, L1 of the edges, and a pull of the latents to zero."""
    edges = sum(((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True)), torch.zeros(()))
    return (y - x).abs().mean() + 2 * (y - x).square().mean() + 0.5 * edges + 1e-3 * z.square().mean()


class Crops:
    """A pool of rendered training scenes, and crops from it, four in five of them centred near an object."""

    def __init__(self, rng: np.random.Generator, scenes: int, crop: int) -> None:
        drawn = [place(rng, sample_wish(rng)) for _ in range(scenes)]
        self.images = np.stack([render(scene) for scene in drawn])
        self.centres = [[(thing.x, thing.y) for thing in scene.things] for scene in drawn]
        self.crop = crop

    def sample(self, rng: np.random.Generator, n: int) -> Tensor:
        """n crops in -1..1.  # (B, 3, H, W)"""
        last = CANVAS - self.crop
        out = np.empty((n, self.crop, self.crop, 3), np.uint8)
        for k in range(n):
            i = int(rng.integers(len(self.images)))
            x, y = rng.uniform(0, CANVAS, 2)
            if rng.random() < 0.8:
                x, y = self.centres[i][int(rng.integers(len(self.centres[i])))] + rng.normal(0, 4, 2)
            left, top = (int(np.clip(round(c - self.crop / 2), 0, last)) for c in (x, y))
            out[k] = self.images[i, top : top + self.crop, left : left + self.crop]
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(settings: AutoencoderSettings, progress: Progress) -> AutoencoderDC:
    """Train, or go on training, the autoencoder of a run folder; returns it with `scaling_factor` set.

    The latents that the generator sees are `scaling_factor` times the encoder's, so that their deviation is one.
    """
    torch.manual_seed(settings.seed)
    run = Run(settings.folder)
    model = build_autoencoder()
    kernels = [p for p in model.parameters() if p.ndim == 4]
    ends = {id(model.encoder.conv_in.conv.weight)} if hasattr(model.encoder.conv_in, "conv") else set()
    hidden = [p for p in kernels if id(p) not in ends and p.shape[0] > 12]
    rate = settings.learning_rate
    optimizer = build_optimizer("muon", hidden, model.parameters(), rate, rate)
    parts = {"model": model, "optimizer": optimizer}
    step = run.resume(parts).get("step", 0)
    crops = Crops(np.random.default_rng(settings.seed), settings.scenes, settings.crop)
    while step < settings.steps:
        rng = np.random.default_rng((settings.seed, 1, step))
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        x = crops.sample(rng, settings.batch_size)
        z = model.encode(x).latent
        noise = torch.randn(z.shape, generator=generator) * settings.latent_noise
        y = model.decode(z + noise * z.detach().std()).sample
        loss = reconstruction_loss(y, x, z)
        torch.autograd.backward(loss)
        scale = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps))
        optimizer.step(scale)
        step += 1
        if step % settings.save_every == 0 or step == settings.steps:
            psnr = -10 * math.log10(float(F.mse_loss(y.detach(), x)) / 4)
            figures = {"step": step, "steps": settings.steps, "loss": float(loss.detach()), "psnr": psnr}
            run.log(**figures, latent_std=float(z.detach().std()))
            progress(figures)
            run.save(parts | {"step": step})
    model.eval()
    with torch.no_grad():
        frames = torch.from_numpy(crops.images[:512]).permute(0, 3, 1, 2).float() / 127.5 - 1
        spread = float(model.encode(frames).latent.std())
    model.register_to_config(scaling_factor=1 / spread)
    return model
