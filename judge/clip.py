"""A judge from a CLIP or SigLIP: how close its embeddings of image and prompt are, as PickScore and CLIPScore do.

Letters: B images.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from bestofn.judge.calibration import Calibration
from bestofn.judge.interface import PointwiseJudge, pil_images, reward_verdict
from bestofn.judge.layout import CLIP_TYPES
from bestofn.judge.loader import JudgeFolderError, placed, pretrained, read_json, refused
from bestofn.judge.preprocess import ImageLike
from bestofn.judge.verdict import Verdict


class ClipJudge(PointwiseJudge):
    """A CLIP or SigLIP on one device; its reward is `logits_per_image`, the scaled cosine (SigLIP's with its bias).

    The reward counts as log-odds. SigLIP's is meant so; CLIP's is far above 0 for most images, until a calibration
    (`bestofn calibrate`) says from where on it means yes. A prompt is cut to the tokens that the text tower reads.
    """

    def __init__(
        self, model: Any, processors: tuple[Any, Any], dtype: torch.dtype, calibration: Calibration | None
    ) -> None:
        """
        Args:
            model: a `CLIPModel` or `SiglipModel` on its device.
            processors: image processor and tokenizer.
            dtype: the model's dtype.
            calibration: decides which log-odds are a yes.
        """
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = dtype
        self._images, self._tokenizer = processors
        self._calibration = calibration
        self._text_length = int(model.config.text_config.max_position_embeddings)
        self._lock = threading.Lock()  # a fast tokenizer pads for one thread at a time
        self._flops: int | None = None

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, dtype: torch.dtype, calibration: Calibration | None = None
    ) -> ClipJudge:
        """Load a folder of transformers: safetensors only, and no code of its own.

        Raises:
            JudgeFolderError: the folder holds another model, or not the whole of one.
        """
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in CLIP_TYPES:
            raise JudgeFolderError(f"{folder / 'config.json'}: model_type {kind!r} is not {', '.join(CLIP_TYPES)}")
        with refused(folder):
            images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model: Any = pretrained(AutoModel, folder, dtype)
        return cls(model.to(device).eval().requires_grad_(False), (images, tokenizer), dtype, calibration)

    @torch.inference_mode()
    def ask(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        prompts: Sequence[str],
        *,
        one_tile: bool = False,
        non_blocking: bool = False,
    ) -> torch.Tensor:
        """As `PointwiseJudge.ask`: (B,) float32 on the CPU, the rewards."""
        if len(images) != len(prompts):
            raise ValueError(f"each image needs its prompt, got {len(images)} images and {len(prompts)} prompts")
        rewards = self._forward(pil_images(images), prompts).diagonal()
        return rewards.float().to("cpu", non_blocking=non_blocking)

    def _forward(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """(B, B), each image with each prompt."""
        with self._lock:
            text = self._tokenizer(
                list(prompts),
                padding="max_length",
                truncation=True,
                max_length=self._text_length,
                return_tensors="pt",
                split_special_tokens=True,
            )
        inputs = {**text, **self._images(images=list(images), return_tensors="pt")}
        inputs.pop("token_type_ids", None)
        if self.model.config.model_type != "clip":
            inputs.pop("attention_mask", None)  # SigLIP was trained with its padding in sight
        logits: torch.Tensor = self.model(**placed(inputs, self.device, self.dtype)).logits_per_image
        return logits

    def verdict(self, row: torch.Tensor) -> Verdict:
        """The verdict in one reward."""
        return reward_verdict(float(row), self._calibration)

    def flops(self, width: int, height: int, prompt: str = "", *, one_tile: bool = False) -> int:
        """As `PointwiseJudge.flops`; every image is resized to one size, so all cost the same."""
        if self._flops is None:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self._forward([Image.new("RGB", (64, 64))], [""])
            self._flops = int(counter.get_total_flops())
        return self._flops
