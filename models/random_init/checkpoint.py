"""Checkpoints in the published layouts, at true or tiny shapes, with random weights.

Loading, memory and speed do not depend on the values, so these stand in for weights that are not at hand.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from bestofn.models.instruction import COMPLEX_HUMAN_INSTRUCTION
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import file_shapes
from bestofn.models.random_init.judge import write_nvila_lite
from bestofn.models.random_init.tensors import RandomTensor, another, write_safetensors
from bestofn.models.safetensors_writer import write_json

SANA_1_5: dict[str, Any] = {"qk_norm": "rms_norm_across_heads"}  # all other fields are diffusers' defaults
SPRINT: dict[str, Any] = SANA_1_5 | {"guidance_embeds": True}
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "use_flow_sigmas": True,
}
SCM = {"_class_name": "SCMScheduler", "num_train_timesteps": 1000, "prediction_type": "trigflow", "sigma_data": 0.5}

# mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers
DC_AE = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
TINY_TRANSFORMER: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 48,
    "sample_size": 8,
    "qk_norm": "rms_norm_across_heads",
}
TINY_TEXT = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
TINY_DC_AE = DC_AE | {
    "latent_channels": 8,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [16, 16, 32],
    "decoder_block_out_channels": [16, 16, 32],
    "encoder_layers_per_block": [1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [5]],
    "decoder_qkv_multiscales": [[], [], [5]],
}
# parts: transformer, text_encoder, vae, scheduler, bestofn (call defaults; none for diffusers' own)
SANA_LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "sana1.5-1.6b": {"transformer": SANA_1_5, "text_encoder": {}, "vae": DC_AE, "scheduler": DPM, "bestofn": {}},
    "sana1.5-4.8b": {
        "transformer": SANA_1_5 | {"num_layers": 60},
        "text_encoder": {},
        "vae": DC_AE,
        "scheduler": DPM,
        "bestofn": {},
    },
    "sana-sprint-1.6b": {"transformer": SPRINT, "text_encoder": {}, "vae": DC_AE, "scheduler": SCM, "bestofn": {}},
    "tiny": {
        "transformer": TINY_TRANSFORMER,
        "text_encoder": TINY_TEXT,
        "vae": TINY_DC_AE,
        "scheduler": DPM,
        "bestofn": {"num_inference_steps": 4, "max_sequence_length": 48},
    },
}
LAYOUTS = (*SANA_LAYOUTS, "nvila-lite-2b")


def make_random_checkpoint(
    like: str, out: Path, seed: int | None = 0, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> Path:
    """Write a checkpoint with random weights, bfloat16 except for the autoencoder (float32), as published.

    Args:
        like: one of `LAYOUTS`.
        out: folder, new or empty.
        seed: seed of the weights; the same seed writes the same bytes. None: holes in place of random weights, which
            read as zeros and take neither time nor disk.
        changes: fields to change by part, such as ``{"transformer": {"patch_size": 2}}``; SANA layouts only.

    Returns:
        ``out``.

    Raises:
        ValueError: for an unknown layout or a folder that is not empty.
    """
    if like not in LAYOUTS:
        raise ValueError(f"no layout {like!r}, known are {', '.join(LAYOUTS)}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    if like not in SANA_LAYOUTS:
        write_nvila_lite(out, seed)
        return out
    parts = {part: {**fields, **(changes or {}).get(part, {})} for part, fields in SANA_LAYOUTS[like].items()}
    _write_transformer(out / "transformer", parts["transformer"], seed)
    _write_text_encoder(out / "text_encoder", parts["text_encoder"], another(seed, 1))
    _write_vae(out / "vae", parts["vae"], another(seed, 2))
    _write_tokenizer(out / "tokenizer")
    write_json(out / "scheduler" / "scheduler_config.json", parts["scheduler"])
    sprint = parts["scheduler"]["_class_name"] == SCM["_class_name"]
    index = {
        "_class_name": "SanaSprintPipeline" if sprint else "SanaPipeline",
        "_diffusers_version": "0.33.0",
        "scheduler": ["diffusers", parts["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    write_json(out / "model_index.json", index)
    if parts["bestofn"]:
        write_json(out / "bestofn.json", parts["bestofn"])
    return out


def _tensors(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, is_one: Callable[[str], bool], is_zero: Callable[[str], bool]
) -> list[RandomTensor]:
    return [
        RandomTensor(name, shape, dtype, 1.0 if is_one(name) else 0.0 if is_zero(name) else None)
        for name, shape in shapes.items()
    ]


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _is_norm(name: str) -> bool:
    return "norm" in name and name.endswith("weight")


def _is_bias(name: str) -> bool:
    return name.endswith("bias")


def transformer_tensors(config: LinearDiTConfig) -> list[RandomTensor]:
    """Every weight of a linear DiT's file."""
    with torch.device("meta"):
        shapes = file_shapes(LinearDiT(config))
    return _tensors(shapes, "BF16", _is_norm, _is_bias)


def _write_transformer(folder: Path, fields: dict[str, Any], seed: int | None) -> None:
    config = LinearDiTConfig.from_dict(fields)
    write_safetensors(folder, "diffusion_pytorch_model", transformer_tensors(config), seed)
    write_json(folder / "config.json", config.to_dict())


def _write_text_encoder(folder: Path, fields: dict[str, Any], seed: int | None) -> None:
    config = Gemma2Config(**fields, dtype="bfloat16", architectures=["Gemma2Model"])
    with torch.device("meta"):
        shapes = _shapes(Gemma2Model(config))
    # Gemma's norms scale by 1 + weight
    write_safetensors(folder, "model", _tensors(shapes, "BF16", lambda name: False, _is_norm), seed)
    config.save_pretrained(folder)


def _write_vae(folder: Path, fields: dict[str, Any], seed: int | None) -> None:
    with torch.device("meta"):
        vae = AutoencoderDC(**fields)
    write_safetensors(folder, "diffusion_pytorch_model", _tensors(_shapes(vae), "F32", _is_norm, _is_bias), seed)
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    write_json(folder / "config.json", {"_class_name": "AutoencoderDC", **json.loads(json.dumps(config))})


def _write_tokenizer(folder: Path) -> None:
    """A byte-level BPE with Gemma's special tokens that knows the words of the instruction, not Gemma's vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(COMPLEX_HUMAN_INSTRUCTION, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    shutil.rmtree(folder, ignore_errors=True)
    fast.save_pretrained(folder)
