"""Makes a small, untrained NVILA for a closed world of words and saves any small one in VILA layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, ResNetConfig, ResNetModel

from bestofn.judge.loader import without_progress_bars
from bestofn.judge.nvila import Nvila, VisionTower
from bestofn.judge.projector import Projector
from bestofn.judge.prompting import Question

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
MEDIA = ("<vila/sentinel>", "<image>", "<vila/video>")
DESCRIBE = "describe"

# Only the end of the turn surrounds the user's part: every further token would cost as much as a word.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


@dataclass(frozen=True)
class SmallShape:
    """Sizes of a small NVILA: a ResNet tower, 2 x 2 cells of its last map a token, a Qwen2 decoder.

    A residual network with batch norm learns drawn shapes from a tenth of the images that a patch embedding or
    ConvNeXt would need.

    Attributes:
        S: side of the image in pixels.
        stem: width of the tower's first convolution, which leaves a quarter of the resolution.
        widths: channels of the tower's stages; each stage halves the resolution of the one before.
        depths: blocks of two convolutions of each stage.
        D: width of the decoder.
        feed_forward: width inside its MLPs.
        layers: number of the decoder's layers.
        heads: number of its attention heads.
    """

    S: int
    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    D: int
    feed_forward: int
    layers: int
    heads: int


SHAPES = SmallShape(S=64, stem=32, widths=(64, 128), depths=(2, 2), D=128, feed_forward=384, layers=4, heads=4)
"""The embedded judge: 1.6 million parameters, 16 tokens an image."""


def tokenizer(words: Iterable[str]) -> Any:
    """A tokenizer of lower-cased words; a line break is a token, a word it does not know is `[UNK]`."""
    entries = [*SPECIAL, "\n", "yes", "no", DESCRIBE, *sorted(set(words)), *MEDIA]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(entries))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|endoftext|>", "<|im_start|>", *MEDIA],
        model_max_length=256,
        chat_template=CHAT_TEMPLATE,
    )


def untrained(shape: SmallShape, words: Sequence[str], text: str, seed: int) -> tuple[Nvila, Question]:
    """A small NVILA with random weights in training mode, and the question it will be asked.

    Args:
        shape: its sizes.
        words: the world's words, in any case.
        text: the question, with `{prompt}`.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    spelled = tokenizer(word.lower() for word in words)
    question = Question(spelled, text, None)
    tower = ResNetModel(
        ResNetConfig(
            embedding_size=shape.stem,
            hidden_sizes=list(shape.widths),
            depths=list(shape.depths),
            layer_type="basic",
            downsample_in_first_stage=False,
        )
    )
    llm = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(spelled),
            hidden_size=shape.D,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            tie_word_embeddings=True,
            bos_token_id=spelled.bos_token_id,
            eos_token_id=spelled.eos_token_id,
            pad_token_id=spelled.pad_token_id,
        )
    )
    projector = Projector("mlp_downsample_2x2_fix", shape.widths[-1], shape.D)
    model = Nvila(
        VisionTower(tower, -1, "cls_patch"), projector, llm, len(spelled), question.media_id, question.newline_id
    )
    return model, question


def save(
    folder: Path, model: Nvila, question: Question, known_words: Sequence[str], S: int, dtype: torch.dtype
) -> None:
    """Writes a small NVILA in VILA layout, with the question and its words in `bestofn.json`.

    Args:
        folder: made if need be.
        model: as made by `untrained`.
        question: as made with it.
        known_words: what prompts may say.
        S: side of its images.
        dtype: dtype of the weights on disk.
    """
    tower, llm = model.vision_tower.model, model.llm
    _save_model(tower, folder / "vision_tower", dtype)
    _save_model(llm, folder / "llm", dtype)
    question.tokenizer.save_pretrained(folder / "llm")
    projector_config = {
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": model.mm_projector.kind,
        "model_type": "v2l_projector",
    }
    (folder / "mm_projector").mkdir(exist_ok=True)
    _write(folder / "mm_projector" / "config.json", projector_config)
    weights = {name: p.detach().to(dtype).contiguous() for name, p in model.mm_projector.state_dict().items()}
    save_file(weights, folder / "mm_projector" / "model.safetensors", {"format": "pt"})
    (folder / "mm_projector" / "model.safetensors").chmod(0o644)
    preprocessor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": S, "width": S},
    }
    _write(folder / "vision_tower" / "preprocessor_config.json", preprocessor)
    config = {
        "architectures": ["VILAForCausalLM"],
        "model_type": "vila",
        "resume_path": ".",
        "hidden_size": llm.config.hidden_size,
        "mm_hidden_size": model.mm_projector.C,
        "mm_vision_select_layer": model.vision_tower.select_layer,
        "mm_vision_select_feature": "cls_patch",
        "image_aspect_ratio": "resize",
        "min_tiles": 1,
        "max_tiles": 1,
        "s2": False,
        "dynamic_s2": False,
        "chat_template": None,
        "model_dtype": str(dtype),
        "llm_cfg": _read(folder / "llm" / "config.json"),
        "vision_tower_cfg": _read(folder / "vision_tower" / "config.json"),
        "mm_projector_cfg": projector_config,
    }
    _write(folder / "config.json", config)
    _write(folder / "bestofn.json", {"question": question.text, "known_words": sorted(known_words)})


def _save_model(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    tensors = model.state_dict().items()
    kept = {name: p.detach().to(dtype if p.is_floating_point() else p.dtype) for name, p in tensors}
    with without_progress_bars():
        model.save_pretrained(folder, state_dict=kept)  # type: ignore[operator]
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner only


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
