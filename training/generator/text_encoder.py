"""The shapes text encoder: a word tokenizer, a small Gemma-2, and the heads that teach it who is what and where.

Axes: B prompts, L tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from bestofn.models.shapes.prompts import PromptSpec, known_words
from bestofn.models.shapes.scenes import INVERSE
from bestofn.models.shapes.world import COLOURS, SHAPES

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
TOKENS = 12
"""Length of the longest prompt of the world with its BOS."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, BOS first, padding right, as SANA's Gemma tokenizer behaves."""
    words = [PAD, EOS, BOS, UNKNOWN, *sorted(known_words())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, words.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=300,
    )


def build_text_encoder(vocabulary: int) -> Gemma2Model:
    """A Gemma-2 of two layers; without logit caps, so that every attention backend computes the same."""
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=512,
        sliding_window=512,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


SLOTS = ("left of", "right of", "above", "below", "first", "second")


def layout(spec: PromptSpec) -> list[int]:
    """What the prompt says is where: shape and colour (0 unsaid) of each of SLOTS, and the count."""
    shapes, colours = dict.fromkeys(SLOTS, 0), dict.fromkeys(SLOTS, 0)
    relation = next((need.position[0] for need in spec.include if need.position), None)
    slots = (INVERSE[relation], relation) if relation else ("first", "second")
    for slot, need in zip(slots, spec.include, strict=False):
        shapes[slot] = 1 + SHAPES.index(need.shape)
        colours[slot] = 1 + COLOURS.index(need.colour) if need.colour else 0
    count = sum(need.count for need in spec.include)
    return [*shapes.values(), *colours.values(), count]


class LayoutHead(nn.Module):
    """Reads a prompt's layout off the features of its last token; training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(SHAPES) + 1] * len(SLOTS) + [len(COLOURS) + 1] * len(SLOTS) + [5]
        self.out = nn.Linear(width, sum(self.sizes))

    def forward(self, text: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy; text (B, L, D), mask (B, L), target (B, slots)."""
        last = text[torch.arange(len(text)), mask.sum(1) - 1]
        parts = torch.split(self.out(last), self.sizes, -1)
        losses = [F.cross_entropy(part, target[:, k]) for k, part in enumerate(parts)]
        return torch.stack(losses).mean()
