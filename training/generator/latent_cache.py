"""Training scenes as the frozen encoder sees them, with their words and labels, cached in one file a rank.

Axes: S scenes, C channels, h w latent pixels, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor

from bestofn.models.shapes.scenes import RELATIONS, Wish, place, sample_wish
from bestofn.models.shapes.world import COLOURS, SHAPES, label_maps, render
from bestofn.models.weight_files import whole_file


@dataclass(frozen=True)
class Latents:
    """A set of training scenes."""

    values: Tensor  # (S, C, h, w) float16, scaled
    shapes: Tensor  # (S, N) label of each token, 0 background
    colours: Tensor  # (S, N)
    words: np.ndarray  # (S, 9) int8: four shapes, four colours, relation; -1 where there is none

    def wish(self, index: int) -> Wish:
        """The scene's content."""
        row = self.words[index]
        shapes = tuple(SHAPES[k] for k in row[:4] if k >= 0)
        colours = tuple(COLOURS[k] for k in row[4:8] if k >= 0)
        return Wish(shapes, colours, RELATIONS[row[8]] if row[8] >= 0 else None)


def _encode_words(wish: Wish) -> list[int]:
    shapes = [SHAPES.index(s) for s in wish.shapes]
    colours = [COLOURS.index(c) for c in wish.colours]
    relation = RELATIONS.index(wish.relation) if wish.relation else -1
    return [*shapes, *[-1] * (4 - len(shapes)), *colours, *[-1] * (4 - len(colours)), relation]


@torch.no_grad()
def draw_latents(vae: AutoencoderDC, scenes: int, seed: tuple[int, ...], batch: int = 64) -> Latents:
    """Draw and encode training scenes."""
    rng = np.random.default_rng(seed)
    values, shapes, colours, words = [], [], [], []
    for start in range(0, scenes, batch):
        wishes = [sample_wish(rng) for _ in range(min(batch, scenes - start))]
        drawn = [place(rng, wish) for wish in wishes]
        images = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
        z = vae.encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1).latent * vae.config.scaling_factor
        values.append(z.half())
        maps = [label_maps(scene) for scene in drawn]
        shapes.append(np.stack([m[0].ravel() for m in maps]).astype(np.int8))
        colours.append(np.stack([m[1].ravel() for m in maps]).astype(np.int8))
        words += [_encode_words(wish) for wish in wishes]
    labels = [torch.from_numpy(np.concatenate(part)) for part in (shapes, colours)]
    return Latents(torch.cat(values), labels[0], labels[1], np.array(words, np.int8))


def cached_latents(path: Path, vae: AutoencoderDC, scenes: int, seed: tuple[int, ...]) -> Latents:
    """`draw_latents`, kept in a file; a cache of another size is replaced."""
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if len(saved["values"]) == scenes:
            return Latents(saved["values"], saved["shapes"], saved["colours"], saved["words"].numpy())
    latents = draw_latents(vae, scenes, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = vars(latents) | {"words": torch.from_numpy(latents.words)}
    with whole_file(path) as part:
        torch.save(fields, part)
    return latents
