"""A worker process for chaos: the sleeping engine with notes of what it starts, or the true one short of memory."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestofn.service.core.jobs import Heat
from bestofn.service.core.settings import load_settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.engine.protocol import EngineEvent
from bestofn.service.worker.worker import run_worker

if TYPE_CHECKING:
    from bestofn.service.engine.engine import Engine

HANGS_ONCE = "a tick hangs once"


class NotingEngine(FakeEngine):
    """Notes every heat that it is given, as lines of "time job heat"; hangs at `HANGS_ONCE` if no engine has before."""

    def __init__(self, slots: int, step_seconds: float, notes: Path) -> None:
        super().__init__(slots=slots, step_seconds=step_seconds)
        self._notes = (notes / f"{os.getpid()}.heats").open("a", buffering=1)
        self._hung = notes / "hung"

    def admit(self, heat: Heat) -> None:
        self._notes.write(f"{time.time():.6f} {heat.job.id} {heat.index}\n")
        super().admit(heat)

    def tick(self) -> list[EngineEvent]:
        if any(HANGS_ONCE in run.heat.job.prompt for run in self._runs.values()):
            try:
                self._hung.touch(exist_ok=False)
            except FileExistsError:
                return super().tick()
            time.sleep(3600)
        return super().tick()


def cramped(notes: Path) -> "Engine":
    """The true engine on the shapes checkpoint with memory for 3 rows, 1 image in decode and 2 in judging, and for
    no image that is wider than 128 pixels; it notes every allocation that fails."""
    import torch

    from bestofn.judge.judge import EMBEDDED, Judge
    from bestofn.models.generator import Generator
    from bestofn.service.engine.batch_sizes import Sizes
    from bestofn.service.engine.engine import Engine
    from bestofn.service.engine.judge_residency import JudgeResidency
    from bestofn.service.engine.loader import load_engine

    lines = (notes / f"{os.getpid()}.memory").open("a", buffering=1)

    def failed(stage: str, size: int) -> str:
        lines.write(f"{stage} {size}\n")
        return f"{stage}: {size}"

    class CrampedGenerator(Generator):
        def output(self, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError(failed("denoising", len(x)))
            return super().output(x, *rest, **options)

        def decode(self, latents: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            if len(latents) > 1 or latents.shape[-1] * self.config_scale > 128:
                raise MemoryError(failed("decoding", len(latents)))
            return super().decode(latents, *rest, **options)

        config_scale = 0

    class CrampedJudge(Judge):
        def ask(self, images: Any, prompts: Sequence[str], **options: Any) -> torch.Tensor:
            if len(images) > 2:
                failed("judging", len(images))
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
            return super().ask(images, prompts, **options)

    settings = load_settings(model="shapes", judge="shapes", devices="cpu", threads=1)
    loaded = load_engine(settings)
    generator = CrampedGenerator.load("shapes")
    CrampedGenerator.config_scale = 128 // generator.latent_shape(128, 128)[-1]
    judge = CrampedJudge.load(EMBEDDED)
    return Engine(
        generator,
        JudgeResidency([lambda: judge], generator, shared=True),
        loaded.model_info,
        loaded.judge_info,
        loaded.tokenizer_files,
        Sizes(slots=8, strict=True, rows=8, decode=4, judge=4),
    )


def main(kind: str, slots: str, step_seconds: str, notes: str) -> int:
    if kind == "cramped":
        return run_worker(load_settings(), lambda: cramped(Path(notes)))
    return run_worker(load_settings(), lambda: NotingEngine(int(slots), float(step_seconds), Path(notes)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
