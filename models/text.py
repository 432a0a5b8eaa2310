"""Prompts through Gemma-2, exactly as diffusers' SanaPipeline encodes them, once per prompt.

L text tokens that the transformer sees, E width of the text encoder.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils import logging

from bestofn.kernels.transfer import uploaded
from bestofn.models.errors import CheckpointError, PromptTooLong
from bestofn.models.finite import check_finite
from bestofn.models.weight_files import read_json, refused


def normalise(prompt: str) -> str:
    """What the pipeline makes of a prompt before the tokenizer: lower case, no blanks around it."""
    return prompt.lower().strip()


@dataclass(frozen=True)
class TextEmbedding:
    """The text encoder's last hidden states of one prompt.

    Attributes:
        states: (1, L, E).
        mask: (1, L), 1 for text, 0 for padding.
    """

    states: Tensor
    mask: Tensor


class PromptTokenizer:
    """The checkpoint's tokenizer with the pipeline's rules; needs no model."""

    def __init__(self, tokenizer: Any, max_sequence_length: int, instruction: tuple[str, ...]) -> None:
        """
        Args:
            tokenizer: a transformers tokenizer.
            max_sequence_length: L.
            instruction: the complex human instruction, line by line; empty for none.
        """
        self._tokenizer = tokenizer
        self._tokenizer.padding_side = "right"
        self.max_sequence_length = max_sequence_length
        self.instruction = "\n".join(instruction)
        self._control = len(tokenizer.encode(""))
        self._instruction_tokens = len(tokenizer.encode(self.instruction)) if self.instruction else self._control

    @classmethod
    def load(
        cls, folder: Path, class_name: str, max_sequence_length: int, instruction: tuple[str, ...]
    ) -> "PromptTokenizer":
        """Load the ``tokenizer`` folder with the class that ``model_index.json`` names, as diffusers does."""
        kind = getattr(transformers, class_name, None)
        if kind is None:
            raise CheckpointError(f"{folder}: transformers has no tokenizer class {class_name!r}")
        with refused(folder):
            tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
            return cls(tokenizer, max_sequence_length, instruction)

    @property
    def limit(self) -> int:
        """The most tokens a prompt may have, control tokens included."""
        return self._limit(instructed=True)

    def _limit(self, instructed: bool) -> int:
        return self.window(instructed) - (self._instruction_tokens - self._control if instructed else 0)

    def window(self, instructed: bool) -> int:
        """Tokens that go through the encoder: room for the instruction and a longest prompt."""
        if not (instructed and self.instruction):
            return self.max_sequence_length
        return self._instruction_tokens + self.max_sequence_length - 2

    def count(self, prompt: str, instructed: bool = True) -> int:
        """Tokens of a prompt behind the instruction, control tokens included."""
        text = normalise(prompt)
        if instructed and self.instruction:
            return len(self._tokenizer.encode(self.instruction + text)) - self._instruction_tokens + self._control
        return len(self._tokenizer.encode(text))

    def check(self, prompt: str, instructed: bool = True) -> None:
        """Raise PromptTooLong where the pipeline would silently cut the prompt."""
        limit, tokens = self._limit(instructed), self.count(prompt, instructed)
        if tokens > limit:
            raise PromptTooLong(tokens, limit)

    def __call__(self, prompt: str, instructed: bool = True) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (1, window) int64, padded to the window; raises PromptTooLong."""
        self.check(prompt, instructed)
        text = normalise(prompt)
        batch = self._tokenizer(
            [self.instruction + text if instructed else text],
            padding="max_length",
            max_length=self.window(instructed),
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return batch.input_ids, batch.attention_mask


def load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load Gemma-2 from the ``text_encoder`` folder, in evaluation mode."""
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != "gemma2":
        raise CheckpointError(f"{folder / 'config.json'}: model_type = {model_type!r} is not supported, only 'gemma2'")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it would break into the program's own
    try:
        with refused(folder):
            encoder, loading = transformers.Gemma2Model.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, use_safetensors=True
            )
    finally:
        if shown:
            logging.enable_progress_bar()
    if loading["missing_keys"]:
        raise CheckpointError(f"{folder}: no weight {sorted(loading['missing_keys'])[0]!r}")
    check_finite(encoder, folder)
    return encoder.to(device).eval()


@torch.inference_mode()
def encode(encoder: Any, tokenizer: PromptTokenizer, prompt: str, instructed: bool = True) -> TextEmbedding:
    """Text embedding of one prompt.

    With the instruction, the encoder reads instruction and prompt. Only the states of the start token and of the last
    L - 1 tokens are kept, so the transformer does not see the instruction's tokens.

    Args:
        encoder: Gemma-2.
        tokenizer: the same checkpoint's tokenizer.
        prompt: as the user wrote it.
        instructed: False for the negative prompt.

    Raises:
        PromptTooLong: naming the limit.
    """
    ids, mask = tokenizer(prompt, instructed)  # (1, window)
    device = next(encoder.parameters()).device
    seen = uploaded(mask, device)
    states = encoder(uploaded(ids, device), attention_mask=seen)[0]  # (1, window, E)
    if instructed:  # slices, since a list of indices would be copied to the device, which waits for it
        first = ids.shape[1] - tokenizer.max_sequence_length + 1
        states, seen = (torch.cat([all_of[:, :1], all_of[:, first:]], dim=1) for all_of in (states, seen))
    return TextEmbedding(states.clone(), seen)


class EmbeddingCache:
    """The last prompts' embeddings, 3 MB each at Gemma-2-2B's width.

    The encoder's 10 GB of float32 may be offloaded for the transformer, so each prompt is encoded once. The empty
    negative prompt is encoded with the first one, because nearly every job needs it.
    """

    def __init__(self, encode: Callable[[str, bool], TextEmbedding], with_empty: bool, kept: int = 16) -> None:
        """
        Args:
            encode: returns the embedding of a prompt; its second argument says whether the prompt is negative.
            with_empty: encode the empty negative prompt too.
            kept: number of cached prompts in addition to the empty negative one.
        """
        self._encode = encode
        self._with_empty = with_empty
        self._kept = kept
        self._empty: TextEmbedding | None = None
        self._others: OrderedDict[tuple[str, bool], TextEmbedding] = OrderedDict()

    def get(self, prompt: str, negative: bool) -> TextEmbedding:
        """The embedding of one prompt; passes on what the encoder raises."""
        if (prompt, negative) == ("", True):
            if self._empty is None:
                self._empty = self._encode("", True)
            return self._empty
        if (prompt, negative) not in self._others:
            self._others[prompt, negative] = self._encode(prompt, negative)
            if self._with_empty:
                self.get("", True)
        self._others.move_to_end((prompt, negative))
        while len(self._others) > self._kept:
            self._others.popitem(last=False)
        return self._others[prompt, negative]
