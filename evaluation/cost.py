"""What a candidate costs: floating-point operations counted, seconds measured on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bestofn.evaluation.replay import Replayed
from bestofn.evaluation.stats import Floats
from bestofn.judge.interface import PointwiseJudge
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.models.sampling import LoadedGenerator, generate

BATCH, ROUNDS = 16, 3


@dataclass(frozen=True)
class Price:
    """Of one prompt's text, one step of one candidate (with guidance), one decoded image and one verdict."""

    text: float
    step: float
    decode: float
    judge: float

    def of(self, replayed: Replayed) -> Floats:
        """The price of every job, (P, B)."""
        price: Floats = self.text + replayed.steps_taken * self.step + replayed.verdicts * (self.decode + self.judge)
        return price


def counted(generator: LoadedGenerator, judge: PointwiseJudge) -> Price:
    """TFLOP, as the server counts them."""
    defaults = generator.defaults
    flops = generator.flops(defaults.width, defaults.height)
    passes = 2 if generator.needs_negative(defaults.guidance_scale) else 1
    verdict = judge.flops(defaults.width, defaults.height)
    return Price(*(value / TERA for value in (passes * flops.text, passes * flops.forward, flops.decode, verdict)))


def timed(generator: LoadedGenerator, judge: PointwiseJudge, prompt: str) -> Price:
    """Seconds of one thread here, in batches of 16: the quickest of some rounds.

    A step's price is the difference of two solutions; their text and decoding cancel out. Those of a
    pipeline are one call, and both are counted as decoding.
    """
    steps = generator.defaults.num_inference_steps

    def draw(count: int) -> Callable[[], object]:
        return lambda: generate(generator, prompt, range(BATCH), num_inference_steps=count)

    images = list(generate(generator, prompt, range(BATCH), num_inference_steps=1).numpy())
    verdict = _seconds(lambda: judge.judge(images, [prompt] * BATCH)) / BATCH
    whole, half = _seconds(draw(steps)), _seconds(draw(max(1, steps // 2)))
    step = (whole - half) / BATCH / max(1, steps - steps // 2)
    if not isinstance(generator, Generator):
        return Price(0.0, step, max(0.0, whole / BATCH - steps * step), verdict)
    latents = torch.zeros(BATCH, *generator.latent_shape(generator.defaults.width, generator.defaults.height))
    text = _seconds(lambda: generator.prompt_contexts([(prompt, False), ("", True)]))
    decode = _seconds(lambda: generator.decode(latents)) / BATCH
    return Price(text, step, decode, verdict)


def _seconds(run: Callable[[], object]) -> float:
    took = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run()
        took.append(time.perf_counter() - begun)
    return min(took)
