"""The engine of every other family: one device that draws in whole batches of one prompt with a diffusers pipeline."""

from collections import deque
from collections.abc import Generator as Steps
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bestofn.models.flops import TERA
from bestofn.models.pipelines.generator import PipelineGenerator
from bestofn.service.core.jobs import Heat
from bestofn.service.core.workers import JudgeInfo, ModelInfo
from bestofn.service.engine import scheduler as policy
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.heat_engine import HeatEngine, denoising
from bestofn.service.engine.heat_state import Owner
from bestofn.service.engine.items import Latent
from bestofn.service.engine.judge_residency import JudgeResidency
from bestofn.service.engine.microbatch import out_of_memory, release_cache, shrunk_batches
from bestofn.service.engine.postprocess import Postprocess
from bestofn.service.engine.protocol import HeatFailed, Stepped
from bestofn.service.engine.stepwise import Stepwise
from bestofn.service.engine.timing import Clock
from bestofn.service.media.provenance import Signer
from bestofn.service.telemetry.metrics import OUT_OF_MEMORY


@dataclass(slots=True)
class _Batch:
    """Candidates of one heat in one call of the pipeline, and the steps that are done."""

    candidates: policy.Waiting
    num_inference_steps: int
    steps: int = 0


class PipelineEngine(HeatEngine):
    """A pipeline's batches, and the judge; `protocol.Engine` is the contract.

    A tick runs one step of one call of the pipeline, which pauses after each step. No candidate joins a batch in
    flight. In strict mode a batch has one candidate, since a kernel may round differently for another batch size.
    """

    def __init__(
        self,
        generator: PipelineGenerator,
        judge: JudgeResidency,
        model_info: ModelInfo,
        judge_info: JudgeInfo,
        tokenizer_files: Sequence[bytes],
        sizes: Sizes,
        signer: Signer | None = None,
    ) -> None:
        """
        Args:
            generator: the pipeline.
            judge, model_info, judge_info, tokenizer_files, sizes, signer: as of `HeatEngine`.
        """
        super().__init__(generator.device, judge, model_info, judge_info, tokenizer_files, sizes, signer=signer)
        self.generator = generator
        self._flops = cache(generator.flops)
        self._call: Stepwise[Tensor] = Stepwise(generator.device)
        self._batch: _Batch | None = None
        self._most: dict[policy.Size, int] = {}  # candidates of a batch, as far as memory sufficed until now
        self._retried: dict[Owner, int] = {}  # steps of a heat that a call which did not fit has reported already
        self._clocks: deque[Clock] = deque()  # clocks of steps that were queued and not waited for
        one_by_one = BatchPool(1)
        shared = self._flops, one_by_one, self._side_stream, generator.release, self._encoder
        self._finishing = Postprocess(generator, judge, self._heats, sizes, *shared)

    def warm_up(self) -> None:
        """Loads the judges and, on a GPU, draws one step of an image of the model's own size.

        Raises:
            MemoryError: one image of that size does not fit into memory.
        """
        for number in range(self._judge.count):
            self._judge.get(number)
        if self.device.type == "cuda":
            try:
                self.generator.draw("", [0], num_inference_steps=1)
            except torch.OutOfMemoryError as error:
                raise MemoryError(str(error)) from error
            self._finishing.warm_up((self.model_info.width, self.model_info.height))

    def batch_size(self, size: policy.Size) -> int:
        """Candidates of one call for images of this size."""
        return self._most.get(size, 1 if self.sizes.strict else self.slots)

    def _group(self, heat: Heat, draft: bool) -> policy.Group:
        return policy.Group(heat.job.width, heat.job.height)

    def _denoise(self) -> Steps[Stepped | HeatFailed, None, bool]:
        if self._batch is None:
            chosen, self._waiting = policy.next_batch(self._waiting, lambda group: self.batch_size(group.size))
            if chosen is None:
                return False
            self._batch = self._begin(chosen)
        yield from self._advance(self._batch)
        return True

    def _begin(self, chosen: policy.Waiting) -> _Batch:
        spec = self._heats[chosen.owner].heat.job
        steps = spec.steps_of(draft=chosen.draft)
        seeds = [spec.seed + candidate for candidate in chosen.candidates]
        self._call.start(
            lambda pause: self.generator.draw(
                spec.prompt,
                seeds,
                negative_prompt=spec.negative_prompt,
                width=spec.width,
                height=spec.height,
                num_inference_steps=steps,
                guidance_scale=spec.guidance_scale,
                on_step=pause,
            )
        )
        return _Batch(chosen, steps)

    def _advance(self, batch: _Batch) -> Steps[Stepped | HeatFailed, None, None]:
        chosen, too_large = batch.candidates, False
        owner, size = chosen.owner, chosen.group.size
        try:
            with Clock(self.device) as clock:
                images = self._call.advance()
        except ValueError as error:  # the family refuses the size, or the prompt is too long for it
            self._batch = None
            yield HeatFailed(*owner, str(error), final=True)
            return
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            self._batch, too_large = None, True
        if too_large:  # the failed call's tensors are gone only now that its traceback is
            yield from self._shrink(batch)
            return
        self._clocks.append(clock)
        if len(self._clocks) > 1:
            self._clocks.popleft().wait()
        work, count = self._heats[owner], len(chosen.candidates)
        work.clocks.append(("denoise" if images is None else "decode", clock, 1.0))
        left = batch.num_inference_steps - batch.steps
        steps = min(1, left) if images is None else left  # a family without a callback reports all at the end
        batch.steps += steps
        if steps:
            rows = 2 if self.generator.needs_negative(work.heat.job.guidance_scale) else 1
            forwards = steps * rows * count
            work.counts["transformer"] += forwards
            work.tflops += forwards * self._flops(*size).forward / TERA
            again = min(steps * count, self._retried.get(owner, 0))
            self._retried[owner] = self._retried.get(owner, 0) - again
            if new := steps * count - again:
                yield Stepped(*owner, new, rows * new)
        if images is not None:
            self._batch = None
            for image, candidate in zip(images, chosen.candidates, strict=True):
                self._finishing.add(size, Latent(owner, candidate, image, chosen.draft))

    def _shrink(self, batch: _Batch) -> Steps[HeatFailed, None, None]:
        """Halves the batches of a size for good, and puts the candidates of one that did not fit back."""
        OUT_OF_MEMORY.labels("denoising").inc()
        chosen = batch.candidates
        owner, count = chosen.owner, len(chosen.candidates)
        self.generator.release()
        if count == 1:
            yield HeatFailed(*owner, f"{denoising(chosen.group)} needs more memory than is free")
            return
        release_cache()
        self._most[chosen.group.size] = count // 2
        self._retried[owner] = self._retried.get(owner, 0) + batch.steps * count
        self._waiting = (chosen, *self._waiting)
        self._heats[owner].warn(shrunk_batches("denoising", str(count // 2), count))

    def _stop(self, owner: Owner) -> None:
        self._retried.pop(owner, None)
        if self._batch is not None and self._batch.candidates.owner == owner:
            self._batch = None
            self._call.stop()
