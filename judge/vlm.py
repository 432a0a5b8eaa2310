"""A judge from any vision-language model of transformers: the first answer token's probability of yes against no.

Letters: B images, L positions, V tokenizer entries.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from bestofn.judge.conversation import Conversation
from bestofn.judge.interface import WORDS, PointwiseJudge, pil_images
from bestofn.judge.loader import placed, pretrained, refused
from bestofn.judge.preprocess import ImageLike
from bestofn.judge.verdict import BROKEN, Answer, Verdict


class VlmJudge(PointwiseJudge):
    """A vision-language model on one device; every verdict is one forward over one image and one question.

    A word's logit is the logarithm of its spellings' summed exponentials, so the margin is the log-odds of yes against
    no. The answer is "other" where another token is likelier than both words.

    Attributes:
        conversation: how images and prompts become the model's inputs.
    """

    def __init__(self, model: Any, conversation: Conversation, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            model: an `AutoModelForImageTextToText` on the device.
            conversation: the same folder's conversation.
            device, dtype: the model's device and dtype.

        Raises:
            ValueError: the vocabulary has no token for an answer.
        """
        self.model = model
        self.conversation = conversation
        self.device = device
        self.dtype = dtype
        takes = inspect.signature(model.forward).parameters
        self._options = {name: value for name, value in (("logits_to_keep", 1), ("use_cache", False)) if name in takes}
        self._words = [torch.tensor(conversation.spellings(answer), device=device) for answer in WORDS]
        self._counted: dict[tuple[int, int], tuple[int, int]] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> VlmJudge:
        """Load a folder of transformers: safetensors only, and no code of its own.

        Raises:
            JudgeFolderError: the folder does not hold a model that transformers reads, or not the whole of it.
        """
        with refused(folder):
            conversation = Conversation.read(folder)
            model: Any = pretrained(AutoModelForImageTextToText, folder, dtype)
            return cls(model.to(device).eval().requires_grad_(False), conversation, device, dtype)

    @torch.inference_mode()
    def ask(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        prompts: Sequence[str],
        *,
        one_tile: bool = False,
        non_blocking: bool = False,
    ) -> torch.Tensor:
        """As `PointwiseJudge.ask`: (B, 3) float32 on the CPU, logits of yes, no and the likeliest other token."""
        if len(images) != len(prompts):
            raise ValueError(f"each image needs its prompt, got {len(images)} images and {len(prompts)} prompts")
        inputs = self._inputs(pil_images(images), prompts)
        logits = self.model(**inputs, **self._options).logits[:, -1].float()  # (B, V)
        words = [logits[:, ids].logsumexp(1) for ids in self._words]
        others = logits.index_fill(1, torch.cat(self._words), -torch.inf).amax(1)
        return torch.stack([*words, others], 1).to("cpu", non_blocking=non_blocking)

    def _inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Any]:
        made = self.conversation.inputs(images, prompts)
        return {**made, **placed(made, self.device, self.dtype)}

    def verdict(self, row: torch.Tensor) -> Verdict:
        """The verdict in one (3,) row of `ask`."""
        yes, no, other = row.tolist()
        if not abs(yes - no) < float("inf"):
            return BROKEN
        word: Answer = "yes" if yes > no else "no"
        return Verdict(word if max(yes, no) >= other else "other", yes, no)

    def flops(self, width: int, height: int, prompt: str = "", *, one_tile: bool = False) -> int:
        """As `PointwiseJudge.flops`: counted once a size, with a forward over a blank image and an empty prompt."""
        return self._count(width, height)[0]

    def check(self, prompt: str, width: int, height: int) -> None:
        """As `PointwiseJudge.check`."""
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or self.conversation.tokenizer.model_max_length
        positions = self._count(width, height)[1] + self.conversation.count(prompt)
        if positions >= most:
            raise ValueError(
                f"the prompt and its image take {positions} positions, the judge reads fewer than {most}: shorten the "
                "prompt"
            )

    def _count(self, width: int, height: int) -> tuple[int, int]:
        """FLOPs and positions of a forward over a blank image of a size."""
        with self._lock:
            if (width, height) not in self._counted:
                inputs = self._inputs([Image.new("RGB", (width, height))], [""])
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    self.model(**inputs, **self._options)
                self._counted[width, height] = int(counter.get_total_flops()), int(inputs["input_ids"].shape[1])
            return self._counted[width, height]
