"""An evaluation from checkpoints to its report: one pool, filled and replayed."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.evaluation import cost, report
from bestofn.evaluation import geneval_export as folders
from bestofn.evaluation.drawing import fill, parts
from bestofn.evaluation.files import write_report
from bestofn.evaluation.pool import Pool, SampleRequest, SamplingConfig, Source, filled_from
from bestofn.evaluation.replay import replay
from bestofn.evaluation.strategies import Strategy
from bestofn.evaluation.tasks import Task, check_size
from bestofn.judge.calibration import Calibration
from bestofn.judge.interface import PointwiseJudge
from bestofn.judge.names import members
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.generator import Generator
from bestofn.models.lora import Lora, listed, revision_with
from bestofn.models.sampling import LoadedGenerator, default_size, generate
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import Revision
from bestofn.service.core.settings import load_settings
from bestofn.service.engine.compilation import BFLOAT16, low_precision
from bestofn.service.engine.judge_loader import JudgeCheckpoint, calibration_of, find_judge, yes_above
from bestofn.service.host.cgroups import cores

REMEDY = "name prompts with --file"


@dataclass(frozen=True)
class Scorer:
    """A judge that no strategy sees: it chooses nothing, and scores winners.

    Attributes:
        revision: as workers announce it.
        judge: loaded.
        answers: whether its yes means something; a CLIP's does with a calibration alone.
    """

    revision: Revision
    judge: PointwiseJudge
    answers: bool = True

    @classmethod
    def of(cls, name: str, device: str, chooses: JudgeCheckpoint) -> "Scorer":
        """Load it, if it shares no judge with `chooses`; raises JudgeFolderError, CheckpointError, SetupError."""
        settings = load_settings()
        found = find_judge(name, settings.judge_max_tiles, settings.judge_api_key)
        if _single(found) & _single(chooses):
            raise SetupError(f"{name} is the judge that chooses the winners, so its score says nothing: name another")
        judge = found.load(torch.device(device), calibration_of(found, None))
        return cls(found.revision, judge, yes_above(found) is not None)


def _single(judge: JudgeCheckpoint) -> set[str]:
    """Revisions of the judges in a mixture, or of one judge, for any number of tiles; with the name of a remote one."""
    each = [find_judge(name, key=judge.key) for _, name in members(judge.name.full)]
    return {one.revision.revision if one.name.local else str(one.revision) for one in each}


@dataclass(frozen=True)
class EvaluationRun:
    """A pool with what draws and judges for it."""

    pool: Pool
    generator: LoadedGenerator
    judge: PointwiseJudge
    calibration: Calibration | None
    scorer: Scorer | None = None

    @classmethod
    def of(
        cls,
        model: str,
        judge: str,
        device: str | None,
        tasks: tuple[Task, ...],
        out: Path,
        *,
        replay: bool = False,
        latents: Path | None = None,
        scored_by: str | None = None,
    ) -> "EvaluationRun":
        """
        Args:
            model, judge: names, folders or hub names.
            device: "cpu" or "cuda:<i>"; None: a GPU where there is one.
            tasks: all prompts.
            out: folder of the pool.
            replay: nothing will be drawn, so a pool of either precision will do.
            latents: folder that keeps final latents; None: they are not kept.
            scored_by: name of a judge that chooses nothing, and scores the winners.

        Raises:
            ValueError: the pool there was filled from something else.
            ModelError, JudgeFolderError: a checkpoint is not as needed.
            SetupError: `scored_by` shares a judge with the one that chooses, or fails its start-up test. Or the
                calibration in a judge's folder is of another revision. Or the benchmark's evaluator cannot measure
                images of this size.
        """
        settings = load_settings()
        checkpoint = Checkpoint.resolve(model, any_pipeline=True)
        if not replay and any(task.spec for task in tasks):
            check_size(str(checkpoint.path), default_size(checkpoint), REMEDY)
        judging = find_judge(judge, key=settings.judge_api_key)
        loras = [Lora.resolve(text) for text in listed(settings.lora)]
        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        path = out / "pool.jsonl"
        if replay:
            low = filled_from(path).get("model", "").endswith(BFLOAT16)
        else:
            low = checkpoint.is_sana and device == "cpu" and low_precision(settings.reproducible)
        source = Source(
            str(checkpoint.path),
            revision_with(checkpoint.revision, loras) + BFLOAT16 * low,
            judging.name.full,
            judging.revision.revision,
            tasks,
            device,
            latents,
            settings.lora,
        )
        pool, fitted = Pool(path, source, yes_above(judging)), calibration_of(judging, None)
        scorer = Scorer.of(scored_by, device, judging) if scored_by else None
        return cls(pool, *parts(source.model, source.lora, source.judge, device), fitted, scorer)

    @property
    def steps(self) -> int:
        """Of the checkpoint."""
        return self.generator.defaults.num_inference_steps

    def check(self, numbers: Sequence[int], strategies: Sequence[Strategy] = ()) -> None:
        """Check that the generator draws by these strategies, that it and the judge can read these prompts, and the
        evaluator the images.

        Raises:
            SetupError: the benchmark's evaluator cannot measure images of this size.
            ValueError: a pipeline has no previews, or a prompt cannot be read; the first is named, with the number of
                others.
        """
        previews = [one for one in strategies if one.preview is not None]
        if previews and not isinstance(self.generator, Generator):
            raise ValueError(f"{self.generator.family.name} has no previews: leave out the strategy {previews[0]}")
        defaults = self.generator.defaults
        if any(self.pool.source.tasks[number].spec for number in numbers):
            check_size(self.pool.source.model, (defaults.width, defaults.height), REMEDY)
        faults = []
        for number in numbers:
            task = self.pool.source.tasks[number]
            try:
                self.generator.tokenizer.check(task.prompt)
                for judge in (self.judge, *([self.scorer.judge] if self.scorer else [])):
                    judge.check(task.prompt, defaults.width, defaults.height)
            except ValueError as error:
                faults.append(f"{task.place or f'prompt {number}'}: {error}")
        if faults:
            more = f" ({len(faults) - 1} more prompts are too long)" if len(faults) > 1 else ""
            raise ValueError(f"{faults[0]}{more}")

    def fill(
        self,
        numbers: Sequence[int],
        samples: int,
        strategies: Sequence[Strategy],
        processes: int | None,
        progress: Callable[[int, int], None],
    ) -> None:
        """Draw the samples of these prompts that the strategies need and the pool does not have yet."""
        requests = [SampleRequest(SamplingConfig(self.steps), samples, numbers)]
        requests += [
            SampleRequest(config, max(samples, one.num_samples), numbers)
            for one in strategies
            for config in one.configs(self.steps)
        ]
        alone = cores() if self.pool.source.device == "cpu" else 1
        fill(self.pool, requests, processes or alone, progress)

    def complete(self, numbers: Sequence[int]) -> bool:
        """Whether the pool has full solutions of all these prompts."""
        return self.pool.depth(SamplingConfig(self.steps), numbers) > 0

    def measure(self, numbers: Sequence[int], strategies: Sequence[Strategy]) -> dict[str, Any]:
        """The report on prompts whose images an evaluator has seen: `report.write` writes it."""
        torch.set_num_threads(1)
        machine = (
            f"{platform.machine()}, {cores()} cores, torch {torch.__version__}, Python {platform.python_version()}"
        )
        prices = {
            "tflops": cost.counted(self.generator, self.judge),
            "seconds": cost.timed(self.generator, self.judge, self.pool.source.tasks[numbers[0]].prompt),
        }
        return report.summary(
            self.pool, report.ReportRequest(numbers, strategies, self.steps, prices, self.calibration, machine)
        )

    def winners(self, numbers: Sequence[int], strategies: Sequence[Strategy], images: int, out: Path) -> dict[str, Any]:
        """The winners of prompts of a file, drawn into folders for their evaluators, and what is known before that.

        Raises:
            SetupError: the judge that scores them gives no verdict.
        """
        played = [
            one
            for strategy in strategies
            if (
                one := replay(
                    strategy, self.pool, self.steps, numbers, self.calibration, min(images, strategy.num_samples)
                )
            )
        ]
        drawn = [folders.write(out, self.pool, one, self._draw) for one in played]
        figures = folders.summary(self.pool, played, cost.counted(self.generator, self.judge))
        if self.scorer is not None:
            figures["scored_by"] = self.scorer.revision.model_dump()
            for fields, folder, one in zip(figures["strategies"], drawn, played, strict=True):
                scored = folders.scores(folder, self.pool, one, self.scorer.judge)
                fields |= scored if self.scorer.answers else scored | {"scored_yes": None}
        table, plot = folders.table(figures), out / "winners.png"
        write_report(out, "winners", figures, table, lambda plots: plots.winners(plot, figures))
        return figures

    def _draw(self, prompt: str, seed: int, steps: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = generate(self.generator, prompt, [seed], num_inference_steps=steps)[0].numpy()
        return image
