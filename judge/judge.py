"""The native judge, NVILA, and the ranking of images by any judge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.judge.bracket import Bracket, knockout
from bestofn.judge.calibration import Calibration, bounded
from bestofn.judge.flops import language_flops, vision_flops
from bestofn.judge.gpu_tiling import cut
from bestofn.judge.interface import PointwiseJudge
from bestofn.judge.loader import JudgeFolder, load
from bestofn.judge.preprocess import ImageLike, ImageMode
from bestofn.judge.prompting import unknown_words
from bestofn.judge.verdict import Answer, Rule, Verdict, rank
from bestofn.kernels.transfer import uploaded

EMBEDDED = Path(__file__).resolve().parent / "weights" / "shapes"
"""The judge that ships with the package: a small NVILA that knows drawn shapes."""


class Judge(PointwiseJudge):
    """An NVILA verifier on one device; every verdict is one forward over one image and one prompt.

    Attributes:
        image_mode: how images become tiles.
    """

    def __init__(self, folder: JudgeFolder, device: torch.device, dtype: torch.dtype) -> None:
        self._folder = folder
        self.model = folder.model
        self.device = device
        self.dtype = dtype
        self.image_mode: ImageMode = folder.image_mode
        self._one_tile = replace(folder.image_mode, min_tiles=1, max_tiles=1)
        # Cutting a large image takes 16 to 60 ms: alone, a batch would take longer than a GPU's step.
        self._cutters = None if device.type == "cpu" else ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="tiles")

    @classmethod
    def load(
        cls,
        folder: str | Path = EMBEDDED,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tiles: int | None = None,
    ) -> Judge:
        """Loads a folder in VILA layout.

        Args:
            folder: the checkpoint, by default the embedded judge.
            device: where it runs.
            dtype: float32 on a CPU; float16 is what the published judge runs in, bfloat16 is possible.
            max_tiles: greatest number of tiles an image, the thumbnail not counted, to judge large ones cheaper.

        Raises:
            JudgeFolderError: the folder does not hold a judge that this code can run.
        """
        return cls(load(Path(folder), torch.device(device), dtype, max_tiles), torch.device(device), dtype)

    @torch.inference_mode()
    def ask(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        prompts: Sequence[str],
        *,
        one_tile: bool = False,
        non_blocking: bool = False,
    ) -> torch.Tensor:
        """What the judge answers about each image, for `verdict`.

        Args:
            images: at least one PIL image or (H, W, 3) uint8 array of any size, or a (B, H, W, 3) uint8 tensor on the
                judge's device.
            prompts: the prompt of each image.
            one_tile: look at the whole image only and not into its cells: cheaper, for drafts.
            non_blocking: on a GPU, only queue the work: answers are there when the current stream is done.

        Returns:
            (B, V) float32 on the CPU, logits of the first token of the answer.

        Raises:
            ValueError: the numbers differ, or a conversation is longer than the model can read.
        """
        if len(images) != len(prompts):
            raise ValueError(f"each image needs its prompt, got {len(images)} images and {len(prompts)} prompts")
        mode = self._one_tile if one_tile else self.image_mode
        if isinstance(images, torch.Tensor):
            tiles = cut(mode, images)  # (B * n, S, S, 3)
            counts = [len(tiles) // len(images)] * len(images)
            pixels = looked_up(self._levels, tiles)
        else:
            cuts = list(self._cutters.map(mode.tiles, images) if self._cutters else map(mode.tiles, images))
            counts = list(map(len, cuts))
            pixels = self._pixels(np.concatenate(cuts))
        rows = [self.ids(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        logits: torch.Tensor = self.model(pixels.to(self.dtype), rows)  # (B, V)
        return logits.to("cpu", non_blocking=non_blocking)

    def _pixels(self, tiles: NDArray[np.uint8]) -> torch.Tensor:
        """(n, S, S, 3) -> (n, 3, S, S) on the device, as `ImageMode.pixels`."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.image_mode.pixels(tiles))
        return looked_up(self._levels, uploaded(torch.from_numpy(tiles), self.device))

    @cached_property
    def _levels(self) -> torch.Tensor:
        return torch.from_numpy(self.image_mode.levels.copy()).to(self.device)

    def verdict(self, logits: torch.Tensor) -> Verdict:
        """The verdict on one image of its (V,) logits."""
        question = self._folder.question
        first = question.tokenizer.decode([int(logits.argmax())], skip_special_tokens=True).strip()
        answer: Answer = first if first in ("yes", "no") else "other"
        return Verdict(answer, float(logits[question.yes_id]), float(logits[question.no_id]))

    def ids(self, prompt: str, tiles: int) -> list[int]:
        """Token ids of the question about an image of ``tiles`` tiles.

        Raises:
            ValueError: with its tiles it is longer than the model can read.
        """
        ids = self._folder.question.ids(prompt, tiles)
        positions = len(ids) + tiles * self.tokens_per_tile
        if positions >= self._folder.max_positions:
            raise ValueError(
                f"the prompt and {tiles} tiles take {positions} positions, the judge reads fewer than "
                f"{self._folder.max_positions}: shorten the prompt or lower max_tiles"
            )
        return ids

    @cached_property
    def tokens_per_tile(self) -> int:
        """Projected tokens of one tile, the newline after them not counted."""
        return self.model.tokens_per_tile(self.image_mode.size)

    def prompt_limit(self, tiles: int) -> int:
        """Maximum tokens of the question with the prompt in it, for an image of ``tiles`` tiles."""
        return (
            self._folder.max_positions - 1 - (len(self.ids("", tiles)) - self.count("")) - tiles * self.tokens_per_tile
        )

    def count(self, prompt: str) -> int:
        """Tokens of the question with a prompt in it."""
        return len(self._folder.question.user_ids(self.question_text.replace("{prompt}", prompt)))

    @property
    def question_text(self) -> str:
        """The question, with ``{prompt}`` once."""
        return self._folder.question.text

    @property
    def tokenizer_json(self) -> bytes:
        """The tokenizer as a tokenizer.json."""
        return bytes(self._folder.question.tokenizer.backend_tokenizer.to_str().encode())

    @property
    def known_words(self) -> frozenset[str] | None:
        """The words of the judge's world, lower-cased, or None for a judge that speaks freely."""
        return self._folder.known_words

    def check(self, prompt: str, width: int, height: int) -> None:
        """As `PointwiseJudge.check`."""
        self.ids(prompt, self.tiles(width, height))

    def group(self, width: int, height: int) -> tuple[int, int]:
        """Size of the grid of tiles of an image of that size."""
        columns, rows = self.image_mode.grid(width, height)
        return columns * self.image_mode.size, rows * self.image_mode.size

    def tiles(self, width: int, height: int) -> int:
        """Number of tiles of an image of that size, thumbnail included."""
        return self.image_mode.count(width, height)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words this judge was never shown; none for a judge that speaks freely."""
        return [] if self.known_words is None else unknown_words(prompt, self.known_words)

    def flops(self, width: int, height: int, prompt: str = "", *, one_tile: bool = False) -> int:
        """Floating-point operations of one verdict on an image of that size (a multiply-add is two)."""
        n = 1 if one_tile else self.tiles(width, height)
        L = len(self.ids(prompt, n)) + n * self.tokens_per_tile
        return n * vision_flops(self.model, self.image_mode.size) + language_flops(self.model, L)


def looked_up(levels: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """`ImageMode.pixels` on a device, which then gets bytes alone: (3, 256), (n, S, S, 3) uint8 -> (n, 3, S, S)."""
    channels = torch.arange(3, device=levels.device)[:, None, None]
    return levels[channels, tiles.permute(0, 3, 1, 2).int()].contiguous()  # rounding depends on the layout


def rank_images(
    judge: PointwiseJudge,
    prompt: str,
    images: Sequence[ImageLike],
    rule: Rule = Rule.MARGIN,
    batch: int = 8,
    second: PointwiseJudge | None = None,
    calibrations: Sequence[Calibration | None] = (None, None),
) -> tuple[list[Verdict], list[int], Bracket]:
    """Judges images of one prompt: the verdicts, the candidates best first, and the knockout among them.

    Args:
        judge: the judge.
        prompt: prompt of the images.
        images: at least one image; a batch at a time is taken.
        rule: ranking rule.
        batch: number of images in one forward.
        second: second judge, for rule lower_bound.
        calibrations: calibrations of both judges, for rule lower_bound.

    Raises:
        ValueError: no images, or one that cannot be judged.
    """

    def all_by(one: PointwiseJudge) -> list[Verdict]:
        shares = (images[start : start + batch] for start in range(0, len(images), batch))  # read when it is their turn
        return [verdict for share in shares for verdict in one.judge(share, [prompt] * len(share))]

    verdicts = all_by(judge)
    if second is not None:
        both = zip(verdicts, all_by(second), strict=True)
        verdicts = [bounded(*pair, calibrations) for pair in both]
    order = rank(verdicts, rule)
    return verdicts, order, knockout(range(len(images)), order)
