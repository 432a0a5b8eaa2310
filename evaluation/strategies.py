"""Strategies: the options of a request by which a job spends its compute, in one line of text.

n=32                        the best of 32
n=16 steps=24               with more denoising steps
n=16 draft=4:0.125          drafts of 4 steps, an eighth of every heat solved in full
n=16 preview=4:0.125        previews after 4 steps instead of drafts: the eighth that looks best goes on
n=64 stop=0.97              until the judge is sure at 97 %
n=64 stop=0.97:16           and giving up after 16 candidates without a yes
    n=64 stop=0.97:64:8         and no stop before 8 candidates
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bestofn.evaluation.pool import SamplingConfig
from bestofn.service.core.jobs import Draft, Stop

DEFAULT = Stop.model_validate({})
FORM = "n=N [steps=STEPS] [draft=STEPS:KEEP | preview=STEPS:KEEP] [stop=CONFIDENCE[:PATIENCE[:MIN]]]"


@dataclass(frozen=True)
class Strategy:
    """How a job of N candidates is computed; `steps` None: the checkpoint's.

    `preview` is no option of a request: it is measured as the alternative to drafts.
    """

    num_samples: int
    steps: int | None = None
    draft: Draft | None = None
    preview: Draft | None = None
    stop: Stop | None = None

    @classmethod
    def parse(cls, text: str) -> "Strategy":
        """From its line.

        Raises:
            ValueError: saying which form is meant.
        """
        try:
            words = dict(word.split("=", 1) for word in text.split())
            steps, draft, preview, stop = (words.pop(name, None) for name in ("steps", "draft", "preview", "stop"))
            strategy = cls(
                int(words.pop("n")),
                None if steps is None else int(steps),
                None if draft is None else _draft(draft),
                None if preview is None else _draft(preview),
                None if stop is None else _stop(stop),
            )
            if words or strategy.num_samples < 1 or (draft and preview):
                raise ValueError(f"not understood: {', '.join(words) or text}")
        except (KeyError, ValueError) as error:
            raise ValueError(f"no strategy {text!r}: expected {FORM} ({error})") from error
        return strategy

    def configs(self, steps: int) -> list[SamplingConfig]:
        """How its candidates are drawn: in full first, then as drafts or previews. `steps`: the checkpoint's."""
        full = SamplingConfig(self.steps or steps)
        if self.draft is not None:
            return [full, SamplingConfig(self.draft.num_inference_steps)]
        return [full] if self.preview is None else [full, SamplingConfig(full.steps, self.preview.num_inference_steps)]

    def __str__(self) -> str:
        words = [f"n={self.num_samples}"]
        if self.steps is not None:
            words.append(f"steps={self.steps}")
        for name, draft in (("draft", self.draft), ("preview", self.preview)):
            if draft is not None:
                words.append(f"{name}={draft.num_inference_steps}:{draft.keep:g}")
        if self.stop is not None:
            numbers = [f"{self.stop.confidence:g}", f"{self.stop.patience}", f"{self.stop.min_samples}"]
            while len(numbers) > 1 and numbers[-1] == str((DEFAULT.patience, DEFAULT.min_samples)[len(numbers) - 2]):
                numbers.pop()
            words.append(f"stop={':'.join(numbers)}")
        return " ".join(words)


def _draft(text: str) -> Draft:
    steps, _, keep = text.partition(":")
    return Draft(num_inference_steps=int(steps), keep=float(keep or 0.125))


def _stop(text: str) -> Stop:
    confidence, *others = text.split(":")
    names = ("patience", "min_samples")
    return Stop.model_validate(
        {"confidence": float(confidence)} | {name: int(value) for name, value in zip(names, others, strict=False)}
    )


def parse_all(lines: Sequence[str]) -> list[Strategy]:
    """One strategy a line; empty lines and comments (#) are skipped."""
    words = (line.split("#", 1)[0].strip() for line in lines)
    return list(dict.fromkeys(Strategy.parse(line) for line in words if line))
