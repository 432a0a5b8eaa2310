"""The pointwise judge as one interface: images and a prompt in, verdicts out. Imports torch for its types alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from bestofn.judge.calibration import Calibration
from bestofn.judge.verdict import BROKEN, Answer, Verdict

if TYPE_CHECKING:
    import torch

    from bestofn.judge.preprocess import ImageLike

QUESTION = 'Does this image show "{prompt}"? Look at its objects, their number, colours and places. Answer yes or no.'
"""The question to models that were not made to judge."""

WORDS = ("yes", "no")


class PointwiseJudge(Protocol):
    """A judge of one image and one prompt; a subclass writes `ask`, `verdict` and `flops`.

    A judge that cannot answer about an image gives `verdict.BROKEN`, which ranks last. It never gives a score of 0.

    Attributes:
        max_batch: maximum images of one `ask`; None: as many as the device takes.
    """

    max_batch: int | None = None

    def ask(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        prompts: Sequence[str],
        *,
        one_tile: bool = False,
        non_blocking: bool = False,
    ) -> Iterable[Any]:
        """Start one forward over a batch.

        Args:
            images: at least one PIL image or (H, W, 3) uint8 array of any size, or a (B, H, W, 3) uint8 tensor on the
                judge's device.
            prompts: prompt of each image.
            one_tile: judge a draft cheaply, where the judge can.
            non_blocking: on a GPU, only queue the work: rows may be read when the current stream is done.

        Returns:
            B rows for `verdict`.

        Raises:
            ValueError: the numbers differ, or a prompt is longer than the judge can read.
        """
        ...

    def answered(self, row: Any) -> bool:
        """Whether `verdict` of a row would not wait for another machine."""
        return True

    def verdict(self, row: Any) -> Verdict:
        """The verdict in a row of `ask`."""
        ...

    def answer(self, row: Any) -> Verdict:
        """As `verdict`; a judge behind an address raises its error where it has none."""
        return self.verdict(row)

    def flops(self, width: int, height: int, prompt: str = "", *, one_tile: bool = False) -> int:
        """Floating-point operations of one verdict on an image of that size (a multiply-add is two)."""
        ...

    def judge(self, images: Sequence[ImageLike], prompts: Sequence[str], *, one_tile: bool = False) -> list[Verdict]:
        """One verdict an image, all in one `ask`; the caller chooses how many go in."""
        if not images and not prompts:
            return []
        return [self.verdict(row) for row in self.ask(images, prompts, one_tile=one_tile)]

    def check(self, prompt: str, width: int, height: int) -> None:
        """Check that the judge can read a prompt with an image of that size.

        Raises:
            ValueError: the prompt is too long; the message has the limit.
        """
        return

    def group(self, width: int, height: int) -> tuple[int, int]:
        """Size under which an image of that size is judged and costed: images of one group share a batch."""
        return width, height

    def tiles(self, width: int, height: int) -> int:
        """Number of tiles that an image of that size is cut into."""
        return 1

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the judge has never learned; none for a judge that reads any text."""
        return []


def pil_images(images: Sequence[ImageLike] | torch.Tensor) -> list[Image.Image]:
    """The images of one `ask` as PIL's."""
    arrays = images if isinstance(images, Sequence) else list(images.cpu().numpy())
    return [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in arrays]


def reward_verdict(log_odds: float, calibration: Calibration | None = None) -> Verdict:
    """The verdict of a judge that gives one number: log-odds of yes, split evenly into both logits.

    Args:
        log_odds: as the judge gives it; NaN for none.
        calibration: decides from which log-odds on the answer is yes; without one it is 0.
    """
    if not abs(log_odds) < float("inf"):
        return BROKEN
    sure = log_odds if calibration is None else calibration.log_odds(log_odds)
    answer: Answer = "yes" if sure > 0 else "no"
    return Verdict(answer, log_odds / 2, -log_odds / 2)
