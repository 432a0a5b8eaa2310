"""SANA's own .pth layout into the diffusers layout, key by key.

Source of the names: NVlabs/Sana (diffusion/model/nets/sana_multi_scale.py) and diffusers'
scripts/convert_sana_to_diffusers.py. D width of the transformer.
"""

import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.models.linear_dit.config import QK_NORM, LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import check_keys, file_shapes
from bestofn.models.safetensors_writer import StoredTensor, write_json, write_shards
from bestofn.models.weight_files import check_file, copy_contents, whole_folder

HEAD_DIM = 32  # channels of a head of linear attention, in all published models
CROSS_HEADS = {1152: 16, 2240: 20}  # heads by published width; no weight shows them
INTERPOLATION = {2048: 1.0, 4096: 2.0}  # scale of the position embedding by pixels a side; None for others
COMPRESSION = 32  # pixels per latent cell and side
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
UNUSED = frozenset({"pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias"})
"""Tensors of a .pth that no forward reads: training's null prompt and loss weights, and a fixed table."""

# Names in diffusers: those in a .pth, and for products that a .pth holds in one, which of how many.
BLOCK: dict[str, tuple[str, int, int]] = {
    "attn1.to_q": ("attn.qkv", 0, 3),
    "attn1.to_k": ("attn.qkv", 1, 3),
    "attn1.to_v": ("attn.qkv", 2, 3),
    "attn1.norm_q": ("attn.q_norm", 0, 1),
    "attn1.norm_k": ("attn.k_norm", 0, 1),
    "attn1.to_out.0": ("attn.proj", 0, 1),
    "attn2.to_q": ("cross_attn.q_linear", 0, 1),
    "attn2.to_k": ("cross_attn.kv_linear", 0, 2),
    "attn2.to_v": ("cross_attn.kv_linear", 1, 2),
    "attn2.norm_q": ("cross_attn.q_norm", 0, 1),
    "attn2.norm_k": ("cross_attn.k_norm", 0, 1),
    "attn2.to_out.0": ("cross_attn.proj", 0, 1),
    "ff.conv_inverted": ("mlp.inverted_conv.conv", 0, 1),
    "ff.conv_depth": ("mlp.depth_conv.conv", 0, 1),
    "ff.conv_point": ("mlp.point_conv.conv", 0, 1),
}
OUTSIDE = {
    "patch_embed.proj": "x_embedder.proj",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_norm": "attention_y_norm",
    "time_embed.linear": "t_block.1",
    "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.guidance_embedder.linear_1": "cfg_embedder.mlp.0",
    "time_embed.guidance_embedder.linear_2": "cfg_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}


def source_of(name: str) -> tuple[str, int, int]:
    """The .pth name of a diffusers weight, and which of how many equal parts along its first axis it is."""
    if name == "scale_shift_table":
        return "final_layer.scale_shift_table", 0, 1
    path, _, leaf = name.rpartition(".")
    inside = re.fullmatch(r"transformer_blocks\.(\d+)\.?(.*)", path)
    if inside is None:
        return f"{OUTSIDE[path]}.{leaf}", 0, 1
    block, rest = inside.groups()
    if not rest:
        return f"blocks.{block}.{leaf}", 0, 1
    source, part, parts = BLOCK[rest]
    return f"blocks.{block}.{source}.{leaf}", part, parts


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, mapped from the file; code that is pickled in it is not run.

    Raises:
        ModelError: the file is damaged, holds something else than tensors, or no state dict.
    """
    check_file(path)
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is not a file of torch.save, or is of before torch 1.6: fetch it again, or save it once more"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{path} is refused: it holds more than tensors, or is damaged ({reason})") from error
    except (RuntimeError, EOFError) as error:
        raise ModelError(f"{path} cannot be read as a .pth: {' '.join(str(error).split())[:200]}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict: a mapping from names to tensors is needed")
    return {str(name): value for name, value in state.items()}


def config_of(state: Mapping[str, Tensor], side: int, like: LinearDiTConfig | None = None) -> LinearDiTConfig:
    """The transformer's shape, from the shapes of its weights.

    Args:
        state: tensors of a .pth.
        side: pixels a side that the model was made for.
        like: config of a model with the same heads and scales; None: those of the published models.

    Raises:
        ModelError: a weight is missing, or the heads of that width are not known.
    """
    need = ("x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.mlp.inverted_conv.conv.weight")
    if missing := [name for name in (*need, "blocks.0.cross_attn.q_linear.weight") if name not in state]:
        raise ModelError(f"no weight {missing[0]!r}: not a SANA in its own .pth layout")
    D, channels, patch, _ = state[need[0]].shape
    cross = len(state["blocks.0.cross_attn.q_linear.weight"])
    heads = like.num_cross_attention_heads if like is not None else CROSS_HEADS.get(D)
    head_dim = HEAD_DIM if like is None else like.attention_head_dim
    if heads is None or cross % heads or D % head_dim:
        raise ModelError(
            f"the heads of width {D} are not known: name a diffusers checkpoint of the same heads with --base"
        )
    fields = {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": D // head_dim,
        "attention_head_dim": head_dim,
        "num_layers": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "num_cross_attention_heads": heads,
        "cross_attention_head_dim": cross // heads,
        "cross_attention_dim": D,
        "caption_channels": state[need[1]].shape[1],
        "mlp_ratio": len(state[need[2]]) / 2 / D,
        "attention_bias": "blocks.0.attn.qkv.bias" in state,
        "sample_size": side // COMPRESSION,
        "patch_size": patch,
        "interpolation_scale": INTERPOLATION.get(side),
        "guidance_embeds": "cfg_embedder.mlp.0.weight" in state,
        "qk_norm": QK_NORM if "blocks.0.attn.q_norm.weight" in state else None,
    }
    config = LinearDiTConfig.from_dict(fields)
    if like is None:
        return config
    kept = ("sample_size", "interpolation_scale", "guidance_embeds_scale", "timestep_scale", "norm_eps")
    return replace(config, **{name: getattr(like, name) for name in kept})


def converted(state: Mapping[str, Tensor], config: LinearDiTConfig) -> dict[str, Tensor]:
    """The weights under diffusers' names: views, no copies.

    Raises:
        ModelError: naming the weights that are missing or left over, or the first of another shape or dtype.
    """
    with torch.device("meta"):
        wanted = file_shapes(LinearDiT(config))
    sources = {name: source_of(name) for name in wanted}
    used = {source for source, _, _ in sources.values()}
    for what, names in (("missing", used - state.keys()), ("left over", state.keys() - used - UNUSED)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise ModelError(f"{len(names)} weights are {what}: {', '.join(sorted(names)[:8])}{more}")
    if wrong := sorted(source for source in used if state[source].dtype not in DTYPES):
        raise ModelError(f"weight {wrong[0]!r} is {state[wrong[0]].dtype}, known are {', '.join(DTYPES.values())}")
    if uneven := sorted(source for source, _, parts in sources.values() if len(state[source]) % parts):
        raise ModelError(f"weight {uneven[0]!r} has {len(state[uneven[0]])} rows, which cannot be shared evenly")
    made = {name: state[source].chunk(parts)[part] for name, (source, part, parts) in sources.items()}
    check_keys(wanted, {name: tuple(value.shape) for name, value in made.items()}, Path("the .pth"))
    return made


def convert(path: Path, out: Path, side: int = 1024, base: Checkpoint | None = None) -> LinearDiTConfig:
    """Write a checkpoint in diffusers layout from a SANA .pth; `out` appears only when it is whole.

    Args:
        path: the .pth.
        out: a new folder.
        side: pixels a side that the model was made for; a base's goes first.
        base: checkpoint whose other parts are copied, with the same heads; None: only ``transformer`` is written.

    Raises:
        ModelError: something does not fit; the message names it.
    """
    if out.exists():
        raise ModelError(f"{out} exists: name a new folder")
    state = read_pth(path)
    like = None if base is None else LinearDiTConfig.from_file(base.path / "transformer" / "config.json")
    config = config_of(state, side, like)
    if base is not None and base.is_sprint != config.guidance_embeds:
        kinds = ("SANA", "SANA-Sprint")
        raise ModelError(f"{path} is a {kinds[config.guidance_embeds]}, {base.name} a {kinds[base.is_sprint]}")
    weights = converted(state, config)
    tensors = [StoredTensor(name, tuple(value.shape), DTYPES[value.dtype]) for name, value in weights.items()]
    with whole_folder(out) as fresh:
        write_shards(
            fresh / "transformer", "diffusion_pytorch_model", tensors, lambda tensor: _bytes(weights[tensor.name])
        )
        write_json(fresh / "transformer" / "config.json", config.to_dict())
        for item in () if base is None else base.others():
            copy_contents(item, fresh / item.name)
    return config


def _bytes(value: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, little-endian and row-major, in pieces of a few megabytes."""
    flat = value.contiguous().flatten()
    step = 2**21
    for start in range(0, math.prod(value.shape), step):
        yield flat[start : start + step].view(torch.uint8).numpy().data
