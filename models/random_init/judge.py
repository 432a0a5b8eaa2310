"""A judge of NVILA-Lite-2B's shape and layout with random weights."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from bestofn.models.random_init.tensors import RandomTensor, another, write_safetensors
from bestofn.models.safetensors_writer import write_json

VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": False,
}
LLM: dict[str, Any] = {
    "vocab_size": 151_651,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
BLOCK = 3 * 3  # the projector joins 3x3 patches
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[BOS]",
    "[PAD]",
    "<vila/sentinel>",
    "<image>",
    "<vila/video>",
)
WORDS = (
    "system user assistant You are a helpful assistant. Answer the question with yes or no: yes no Yes No",
    "Does the image match the prompt? You are an AI assistant specializing in image analysis and ranking.",
)


def write_nvila_lite(out: Path, seed: int | None) -> None:
    """Write ``llm``, ``vision_tower``, ``mm_projector`` and ``config.json``, 4 GB in bfloat16.

    The tokenizer is byte-level with a few words, under Qwen2's class; the embedding keeps the published number of rows.
    """
    wide, narrow, llm = BLOCK * VISION["hidden_size"], 3 * VISION["hidden_size"], LLM["hidden_size"]
    projector = {
        "layers.1": [("weight", (wide,)), ("bias", (wide,))],
        "layers.2": [("weight", (narrow, wide)), ("bias", (narrow,))],
        "layers.4": [("weight", (narrow,)), ("bias", (narrow,))],
        "layers.5": [("weight", (llm, narrow)), ("bias", (llm,))],
        "layers.7": [("weight", (llm, llm)), ("bias", (llm,))],
    }
    shapes = {f"{layer}.{leaf}": shape for layer, leaves in projector.items() for leaf, shape in leaves}
    write_safetensors(out / "mm_projector", "model", _tensors(shapes), seed)
    projector_config = {"mm_projector_type": "mlp_downsample_3x3_fix", "model_type": "v2l_projector"}
    write_json(out / "mm_projector" / "config.json", projector_config)

    vision_config = SiglipVisionConfig(**VISION, architectures=["SiglipVisionModel"])
    with torch.device("meta"):
        vision = SiglipVisionModel(vision_config)
    names = {f"vision_model.{name.removeprefix('vision_model.')}": shape for name, shape in _shapes(vision).items()}
    write_safetensors(out / "vision_tower", "model", _tensors(names), another(seed, 1))
    vision_config.save_pretrained(out / "vision_tower")
    side = {"height": VISION["image_size"], "width": VISION["image_size"]}
    write_json(
        out / "vision_tower" / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor",
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": side,
        },
    )

    llm_config = Qwen2Config(**LLM, architectures=["Qwen2ForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        language = Qwen2ForCausalLM(llm_config)
    tied = {name: shape for name, shape in _shapes(language).items() if name != "lm_head.weight"}
    write_safetensors(out / "llm", "model", _tensors(tied), another(seed, 2))
    llm_config.save_pretrained(out / "llm")
    _write_tokenizer(out / "llm")

    write_json(
        out / "config.json",
        {
            "architectures": ["VILAForCausalLM"],
            "model_type": "vila",
            "chat_template": "qwen2",
            "dynamic_s2": False,
            "hidden_size": llm,
            "mm_hidden_size": VISION["hidden_size"],
            "image_aspect_ratio": "dynamic",
            "min_tiles": 1,
            "max_tiles": 12,
            "mm_vision_select_feature": "cls_patch",
            "mm_vision_select_layer": -2,
            "model_dtype": "torch.bfloat16",
            "resume_path": "./vlm",
            "s2": False,
            "llm_cfg": llm_config.to_dict(),
            "vision_tower_cfg": vision_config.to_dict(),
            "mm_projector_cfg": projector_config,
        },
    )


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _tensors(shapes: dict[str, tuple[int, ...]]) -> list[RandomTensor]:
    def constant(name: str, shape: tuple[int, ...]) -> float | None:
        return None if len(shape) > 1 else 0.0 if name.endswith("bias") else 1.0

    return [RandomTensor(name, shape, "BF16", constant(name, shape)) for name, shape in shapes.items()]


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text for text in WORDS for _ in range(4)], trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[BOS]",
        eos_token="<|im_end|>",
        pad_token="[PAD]",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="left",
        model_max_length=4096,
    ).save_pretrained(folder)
