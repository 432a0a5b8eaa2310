"""NVILA: a vision tower, a projector and a Qwen2 decoder, in one forward to the logits of the first answer token.

Letters: B images, n tiles of all images, S tile side, T projected tokens a tile, L positions, V tokenizer entries.
C width of the vision tower, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bestofn.judge.projector import Projector
from bestofn.kernels.transfer import uploaded


class VisionTower(nn.Module):
    """A transformers vision model read at one of its hidden states.

    Of SigLIP the layers after that state are dropped, since nothing reads them. A convolutional model gives
    its map as tokens, row by row.

    Args:
        model: any transformers vision model with hidden states of shape (n, T, C) or (n, C, h, w).
        select_layer: `mm_vision_select_layer` of VILA, an index into the hidden states.
        select_feature: `cls_patch` keeps all tokens, `patch` drops the first.

    Raises:
        ValueError: a feature this judge does not know.
    """

    def __init__(self, model: nn.Module, select_layer: int, select_feature: str) -> None:
        super().__init__()
        if select_feature not in ("cls_patch", "patch"):
            raise ValueError(f"mm_vision_select_feature {select_feature!r} is not 'cls_patch' or 'patch'")
        self.skip = 1 if select_feature == "patch" else 0
        self.select_layer = select_layer
        self.trimmed = type(model).__name__ == "SiglipVisionModel"
        if self.trimmed:
            # hidden_states[0] is the embedding, [k] the output of layer k - 1.
            layers: Any = model.encoder.layers  # type: ignore[union-attr]
            depth = range(len(layers) + 1)[select_layer]
            model.encoder.layers = layers[:depth]  # type: ignore[union-attr]
            model.post_layernorm = nn.Identity()
            model.head = None  # type: ignore[assignment]
            model.use_head = False  # type: ignore[assignment]
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, tokens, C)."""
        if self.trimmed:
            h: Tensor = self.model(pixels).last_hidden_state
        else:
            h = self.model(pixels, output_hidden_states=True).hidden_states[self.select_layer]
        if h.ndim == 4:
            h = h.flatten(2).transpose(1, 2)
        return h[:, self.skip :]

    def tokens(self, S: int) -> int:
        """Number of tokens of a tile of S x S pixels."""
        if self.trimmed:
            return (S // int(self.model.config.patch_size)) ** 2 - self.skip  # type: ignore[union-attr,arg-type]
        weight = next(self.model.parameters())
        with torch.no_grad():
            h: Tensor = self(torch.zeros(1, 3, S, S, device=weight.device, dtype=weight.dtype))
        return h.shape[1]


class Nvila(nn.Module):
    """The whole model. A tile's place in the text is a media id, replaced by T projected tokens and a newline.

    Args:
        vision_tower: see `VisionTower`.
        mm_projector: from its width to the language model's.
        llm: a `Qwen2ForCausalLM` with scaled-dot-product attention, without sliding windows.
        vocabulary: V; rows of the embedding beyond it are never read.
        media_id: token id that is replaced by a tile.
        newline_id: the id of "\\n", which ends a tile.
    """

    def __init__(
        self,
        vision_tower: VisionTower,
        mm_projector: Projector,
        llm: nn.Module,
        vocabulary: int,
        media_id: int,
        newline_id: int,
    ) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.mm_projector = mm_projector
        self.llm: Any = llm
        self.vocabulary = vocabulary
        self.media_id = media_id
        self.newline_id = newline_id

    def see(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, T, D), tile by tile; tiles do not see each other."""
        h = self.vision_tower(pixels)  # (n, tokens, C)
        projected: Tensor = self.mm_projector(h)
        return projected  # (n, T, D)

    def tokens_per_tile(self, S: int) -> int:
        """T of a tile of S x S pixels."""
        return self.mm_projector.tokens(self.vision_tower.tokens(S))

    def embed(self, rows: Sequence[Sequence[int]], features: Tensor) -> tuple[Tensor, Tensor]:
        """Puts words and tiles in their places, each row padded at its end.

        Args:
            rows: per image its ids, one media id a tile.
            features: (n, T, D), tiles in the order in which the rows name them.

        Returns:
            (B, L, D) embeddings and (B,) the rows' own lengths.

        Raises:
            ValueError: the rows name another number of tiles than there are.
        """
        T = features.shape[1]
        if (count := sum(row.count(self.media_id) for row in rows)) != features.shape[0]:
            raise ValueError(f"the text names {count} tiles, the images have {features.shape[0]}")
        tile = [self.media_id] * T + [self.newline_id]
        wide = [[i for x in row for i in (tile if x == self.media_id else (x,))] for row in rows]
        lengths = [len(row) for row in wide]
        L = max(lengths)
        padded = [row + [self.newline_id] * (L - len(row)) for row in wide]
        ids = uploaded(torch.tensor(padded), features.device)
        x: Tensor = self.llm.get_input_embeddings()(ids)  # (B, L, D)
        x = x.masked_scatter((ids == self.media_id)[..., None], features.to(x.dtype))
        return x, uploaded(torch.tensor(lengths), features.device)

    def read(self, x: Tensor) -> Tensor:
        """(B, L, D) embeddings -> (B, L, D) states, each position seeing itself and those before it."""
        # With this mask, transformers calls causal attention without looking for packed sequences.
        h: Tensor = self.llm.model(inputs_embeds=x, attention_mask={"full_attention": None}, use_cache=False)[0]
        return h

    def forward(self, pixels: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the first answer token.

        Padding is at the end, where a causal decoder cannot see it, so no mask is needed.

        Args:
            pixels: (n, 3, S, S), the tiles of all images, one after the other.
            rows: per image its ids (`Question.ids`).

        Returns:
            (B, V) float32.
        """
        x, lengths = self.embed(rows, self.see(pixels))  # (B, L, D)
        h = self.read(x)  # (B, L, D)
        last = h[torch.arange(len(h), device=h.device), lengths - 1]  # (B, D)
        logits: Tensor = self.llm.lm_head(last)[:, : self.vocabulary]
        return logits.float()  # (B, V)
