"""The shapes generator as a bundle of diffusers parts: built, sampled from, written to a folder, scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model, PreTrainedTokenizerFast

from bestofn.models.errors import CheckpointError
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import CATEGORIES, BenchmarkPrompt, benchmark_prompts
from bestofn.models.shapes.world import CANVAS, Image
from bestofn.training.generator.autoencoder import LATENT_CHANNELS
from bestofn.training.generator.text_encoder import TOKENS, build_text_encoder, build_tokenizer

FLOW_SHIFT = 3.0
LATENT_SIDE = 16
CALL_DEFAULTS = {
    "num_inference_steps": 12,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
    "complex_human_instruction": None,
}
"""Call defaults in `bestofn.json` of the checkpoint folder."""


@dataclass(frozen=True)
class Parts:
    """Everything a SanaPipeline needs but its scheduler."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: Gemma2Model
    transformer: SanaTransformer2DModel
    vae: AutoencoderDC

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The text encoder's states (B, L, D) and the mask (B, L) of prompts; the empty prompt is a lone BOS."""
        rows = self.tokenizer(list(prompts), padding="max_length", max_length=TOKENS, return_tensors="pt")
        out = self.text_encoder(input_ids=rows.input_ids, attention_mask=rows.attention_mask)
        return out.last_hidden_state, rows.attention_mask

    @property
    def modules(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """What the generator's training changes."""
        return self.transformer, self.text_encoder


def build_parts(vae: AutoencoderDC, width: int, layers: int) -> Parts:
    """An untrained generator around a trained autoencoder."""
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(len(tokenizer))
    transformer = SanaTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_layers=layers,
        num_cross_attention_heads=width // 32,
        cross_attention_head_dim=32,
        cross_attention_dim=width,
        caption_channels=text_encoder.config.hidden_size,
        mlp_ratio=2.5,
        sample_size=LATENT_SIDE,
        patch_size=2,
        interpolation_scale=1,
        qk_norm="rms_norm_across_heads",
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return Parts(tokenizer, text_encoder, transformer, vae)


def check_trainable(folder: Path) -> None:
    """Raise CheckpointError unless a checkpoint is of the drawn world, whose scenes are all there is to learn from."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    if tokenizer.get_vocab().keys() != build_tokenizer().get_vocab().keys():
        raise CheckpointError(
            f"{folder} was not trained on drawn scenes: "
            "train it on images with captions of your own, with bestofn train finetune"
        )


def load_parts(folder: Path) -> Parts:
    """The generator of a shapes checkpoint, to train it further; CheckpointError if it is another."""
    check_trainable(folder)
    pipeline = SanaPipeline.from_pretrained(folder)
    return Parts(pipeline.tokenizer, pipeline.text_encoder, pipeline.transformer, pipeline.vae)


def build_pipeline(parts: Parts) -> SanaPipeline:
    """The parts with SANA's scheduler: flow DPM-Solver++ with shift 3."""
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=FLOW_SHIFT, use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero"
    )
    return SanaPipeline(parts.tokenizer, parts.text_encoder, parts.vae, parts.transformer, scheduler)


def sample(parts: Parts, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
    """Images (64, 64, 3) uint8 of prompts and noise seeds at the call defaults, drawn in one batch."""
    pipeline = build_pipeline(parts)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = {"height": CANVAS, "width": CANVAS, "use_resolution_binning": False}
    images = pipeline(list(prompts), generator=noise, output_type="np", **size, **CALL_DEFAULTS).images
    return list((images * 255).round().astype(np.uint8))


def save_pipeline(parts: Parts, folder: Path) -> None:
    """Write the folder that plain `SanaPipeline.from_pretrained` loads, with `bestofn.json`."""
    build_pipeline(parts).save_pretrained(folder)
    (folder / "bestofn.json").write_text(json.dumps(CALL_DEFAULTS, indent=2) + "\n")


def spread(per_category: int) -> list[BenchmarkPrompt]:
    """A part of the benchmark: `per_category` prompts of each category, evenly spaced in it."""
    out = []
    for tag in CATEGORIES:
        members = [p for p in benchmark_prompts() if p.spec.tag == tag]
        picks = np.linspace(0, len(members) - 1, min(per_category, len(members))).round().astype(int)
        out += [members[k] for k in picks]
    return out


def score(parts: Parts, prompts: Sequence[BenchmarkPrompt]) -> dict[str, float]:
    """Share of correct images by category, their mean ("mean"), and the share on held-out ones ("held_out")."""
    images = sample(parts, [p.spec.prompt for p in prompts], [p.seed for p in prompts])
    correct = np.array([evaluate(image, p.spec).correct for image, p in zip(images, prompts, strict=True)])
    tags = np.array([p.spec.tag for p in prompts])
    held = np.array([p.held_out for p in prompts])
    out = {tag: float(correct[tags == tag].mean()) for tag in CATEGORIES if (tags == tag).any()}
    out["mean"] = float(np.mean(list(out.values())))
    out["held_out"] = float(correct[held].mean()) if held.any() else float("nan")
    return out
