"""Floating-point operations of the generator's parts (2 per multiply-add; matrix products and convolutions only).

N image tokens, L text tokens, D width.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.embeddings import FREQUENCIES

TERA = 1e12


def forward_flops(config: LinearDiTConfig, height: int, width: int, text: int) -> int:
    """One sample through `LinearDiT.forward`.

    Args:
        config: the transformer's shape.
        height, width: latent grid.
        text: L, padded text length.
    """
    D, W, F, H = config.width, config.cross_width, config.ffn_width, config.num_attention_heads
    N = (height // config.patch_size) * (width // config.patch_size)
    K = config.attention_head_dim
    patch = config.in_channels * config.patch_size**2
    self_attention = 4 * N * D * D + N * H * K * (2 * K + 1)
    cross_attention = 2 * N * D * W + 2 * N * text * W
    feed_forward = 2 * N * D * F + 9 * 2 * F * N + N * F * D
    embeddings = (FREQUENCIES * D + D * D) * (2 if config.guidance_embeds else 1) + 6 * D * D
    blocks = config.num_layers * (self_attention + cross_attention + feed_forward)
    return 2 * (blocks + 2 * N * patch * D + embeddings)


def context_flops(config: LinearDiTConfig, text: int) -> int:
    """`LinearDiT.prompt_context` of one prompt of L = ``text`` tokens."""
    D, W = config.width, config.cross_width
    return 2 * text * (config.caption_channels * D + D * D + config.num_layers * 2 * D * W)


def text_flops(config: dict[str, Any], tokens: int) -> int:
    """Gemma-2 over ``tokens`` tokens; ``config`` is the text encoder's ``config.json``."""
    E, hidden, T = config["hidden_size"], config["intermediate_size"], tokens
    heads, kv_heads, K = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    projections = 2 * E * K * (heads + kv_heads)
    return int(2 * T * config["num_hidden_layers"] * (projections + 3 * E * hidden + 2 * T * heads * K))


def decode_flops(vae_config: dict[str, Any], height: int, width: int) -> int:
    """FLOPs of the DC-AE decoder for one (height, width) latent.

    All its operators are linear in the number of pixels, so a small latent is counted and scaled up.
    """
    from diffusers import AutoencoderDC

    side = 4
    with torch.device("meta"):
        vae = AutoencoderDC.from_config(vae_config)
        latent = torch.empty(1, vae.config.latent_channels, side, side)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.decode(latent)
    return int(counter.get_total_flops()) * height * width // side**2
