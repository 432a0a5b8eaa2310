"""The prompt as the transformer sees it: every block's cross-attention keys and values, computed once.

Y layers, P prompts, B rows of a batch, H cross-attention heads, L text tokens, K channels per head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Added to the score of a padded token: its softmax weight underflows to exactly zero, as in diffusers.
MASKED = -10_000.0


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention mask (B, L), 1 = keep -> additive bias (B, 1, 1, L)."""
    return ((1 - mask.to(dtype)) * MASKED)[:, None, None, :]


@dataclass(frozen=True)
class PromptContext:
    """What cross-attention needs of P prompts. It depends neither on the timestep nor on the noise, so one serves all
    steps of all candidates of a prompt.

    Attributes:
        keys, values: (Y, P, H, L, K).
        bias: (P, 1, 1, L), 0 for text and -10,000 for padding.
        prompts: (B,) int64, the prompt that each row of a batch reads; None: row b reads prompt b, and B = P.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    prompts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.bias if self.prompts is None else self.prompts)

    @property
    def tokens(self) -> int:
        """L, padded text length."""
        return self.bias.shape[-1]

    @staticmethod
    def stack(contexts: "Sequence[PromptContext]") -> "PromptContext":
        """One batch of several contexts, in order; all must be padded to one length."""
        lengths = {context.tokens for context in contexts}
        if len(lengths) != 1:
            raise ValueError(f"contexts must be padded to one text length, got lengths {sorted(lengths)}")
        return PromptContext(
            keys=torch.cat([context.keys for context in contexts], dim=1),
            values=torch.cat([context.values for context in contexts], dim=1),
            bias=torch.cat([context.bias for context in contexts], dim=0),
        )

    def select(self, index: Tensor | Sequence[int]) -> "PromptContext":
        """The context of a batch whose row b reads prompt ``index[b]``, repeats allowed; keys and values are shared."""
        prompts = torch.as_tensor(index, device=self.bias.device)
        return replace(self, prompts=prompts if self.prompts is None else self.prompts[prompts])

    def empty_slots(self, slots: int) -> "PromptContext":
        """Buffers for ``slots`` prompts shaped like this one: zero keys and values, nothing masked."""
        return PromptContext(
            keys=self.keys.new_zeros(self.keys.shape[0], slots, *self.keys.shape[2:]),
            values=self.values.new_zeros(self.values.shape[0], slots, *self.values.shape[2:]),
            bias=self.bias.new_zeros(slots, *self.bias.shape[1:]),
        )

    def write(self, slot: int, prompt: "PromptContext") -> None:
        """Copy a context of one prompt into row ``slot`` of these buffers, in place."""
        if len(prompt) != 1 or prompt.keys.shape[2:] != self.keys.shape[2:]:
            raise ValueError(
                f"slot {slot} takes one prompt of {tuple(self.keys.shape[2:])} (heads, tokens, channels), "
                f"got {len(prompt)} of {tuple(prompt.keys.shape[2:])}"
            )
        self.keys[:, slot].copy_(prompt.keys[:, 0])
        self.values[:, slot].copy_(prompt.values[:, 0])
        self.bias[slot].copy_(prompt.bias[0])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.keys.nbytes + self.values.nbytes + self.bias.nbytes
