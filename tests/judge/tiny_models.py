"""Tiny random models of transformers with their processors, made without a hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": 16, "patch_size": 4}
SQUARE = {"height": 16, "width": 16}
TEMPLATE = (
    "{% for m in messages %}<im_start>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<im_end>\n{% endfor %}<im_start>assistant\n"
)
TURN = ("<im_start>", "<im_end>")


def tokenizer(*special: str, **named: str) -> Any:
    """A byte-level BPE tokenizer that knows yes and no in several spellings, each as one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<pad>", "<bos>", "<eos>", *special]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=tokens, show_progress=False)
    bpe.train_from_iterator(["yes no Yes No yes no Yes No"] * 20, trainer)
    ends = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, extra_special_tokens=named or None, **ends)


def qwen2_5_vl() -> tuple[Any, ...]:
    return _qwen(
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        {"window_size": 16, "fullatt_block_indexes": [1]},
        {},
    )


def qwen3_vl() -> tuple[Any, ...]:
    return _qwen(
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        {"head_dim": 8},
    )


def _qwen(config: Any, model: Any, vision: dict[str, Any], text: dict[str, Any]) -> tuple[Any, ...]:
    media = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*media, *TURN)
    start, end, image, video = words.convert_tokens_to_ids(list(media))
    sizes = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    made = config(
        text_config=TEXT
        | text
        | {"vocab_size": len(words), "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config=sizes | {"patch_size": 4, "spatial_merge_size": 2} | vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}, max_pixels=1024
    )
    return model(made), words, images, "<|vision_start|><|image_pad|><|vision_end|>", {}


def internvl() -> tuple[Any, ...]:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = tokenizer("<img>", "</img>", "<IMG_CONTEXT>", "<video>", *TURN, **named, video_token="<video>")
    config = transformers.InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(words)},
        vision_config=VISION | {"image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=False)
    model = transformers.InternVLForConditionalGeneration(config)
    return model, words, images, "<IMG_CONTEXT>\n", {"image_seq_length": 4}


def smolvlm() -> tuple[Any, ...]:
    """SmolVLM-Instruct is of type idefics3."""
    cells = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    media = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    words = tokenizer(*media, *TURN, *cells)
    config = transformers.Idefics3Config(
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(words)},
        vision_config=VISION | PATCHES,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return transformers.Idefics3ForConditionalGeneration(config), words, images, "<image>", {"image_seq_len": 4}


def paligemma() -> tuple[Any, ...]:
    """PaliGemma has no chat template."""
    words = tokenizer("<image>")
    config = transformers.PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma", "head_dim": 8, "vocab_size": len(words) + 1152},
        vision_config=VISION | PATCHES | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projection_dim=16,
    )
    images = SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 16
    return transformers.PaliGemmaForConditionalGeneration(config), words, images, None, {}


VLMS: dict[str, Callable[[], tuple[Any, ...]]] = {
    one.__name__: one for one in (qwen2_5_vl, qwen3_vl, internvl, smolvlm, paligemma)
}


def make_vlm(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model of a kind."""
    torch.manual_seed(seed)
    model, words, images, image, extra = VLMS[kind]()
    _save(folder, model, words, images)
    if image is not None:
        (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", image))
    (folder / "processor_config.json").write_text(json.dumps(extra))
    return folder


def make_clip(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a random CLIP or SigLIP."""
    torch.manual_seed(seed)
    words = tokenizer()
    words.model_max_length = 32
    text = VISION | {"vocab_size": len(words), "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION | PATCHES, projection_dim=8)
        _save(folder, transformers.CLIPModel(config), words, CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE))
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=VISION | PATCHES)
        _save(folder, transformers.SiglipModel(config), words, SiglipImageProcessorPil(size=SQUARE))
    return folder


def make_vit(
    folder: Path, bias: Sequence[float], labels: Sequence[str] = ("normal", "nsfw"), *, scale: float = 1.0, **more: Any
) -> Path:
    """Write a random image classifier whose last layer has this bias, and its weights by `scale`."""
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    config = transformers.ViTConfig(
        **VISION, **PATCHES, id2label=names, label2id={label: i for i, label in names.items()}, **more
    )
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(scale)
        model.classifier.bias.copy_(torch.tensor(bias))
    for part in (model, ViTImageProcessorPil(size=SQUARE)):
        part.save_pretrained(folder)
    return folder


def make_shieldgemma(folder: Path, *, likelier: str) -> Path:
    """Write a ShieldGemma-2 that answers the last token of its question with "yes" or "no", whatever the image."""
    torch.manual_seed(0)
    words = tokenizer("<image>", "<boi>", "<eoi>", *TURN, image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    ids = words.convert_tokens_to_ids
    config = transformers.ShieldGemma2Config(
        text_config=TEXT | {"head_dim": 8, "vocab_size": len(words), "tie_word_embeddings": False},
        vision_config=VISION | PATCHES | {"vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=ids("<image>"),
        boi_token_index=ids("<boi>"),
        eoi_token_index=ids("<eoi>"),
        tie_word_embeddings=False,
        yes_token_index=ids("yes"),
        no_token_index=ids("no"),
    )
    model = transformers.ShieldGemma2ForImageClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and ("o_proj" in name or "down_proj" in name):
                weight.zero_()  # so that the last position holds its own token
        last = words("assistant")["input_ids"][-1]
        model.model.lm_head.weight.zero_()
        model.model.lm_head.weight[ids(likelier)] = 100 * model.get_input_embeddings().weight[last]
    template = TEMPLATE.replace("IMAGE", "<boi>")
    processor = transformers.ShieldGemma2Processor(
        Gemma3ImageProcessorPil(size=SQUARE), words, chat_template=template, image_seq_length=4
    )
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def _save(folder: Path, model: Any, words: Any, images: Any) -> None:
    for part in (model, words, images):
        part.save_pretrained(folder)
