"""The engine: one device that draws and judges the candidates of whichever heats it was given."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from functools import cache, partial

import torch

from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.context import PromptContext
from bestofn.service.core.jobs import Heat
from bestofn.service.core.workers import JudgeInfo, ModelInfo
from bestofn.service.engine import scheduler as policy
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.cuda_graph import Recorded, Recorder, plain
from bestofn.service.engine.heat_engine import HeatEngine, denoising
from bestofn.service.engine.heat_state import HeatWork, Owner
from bestofn.service.engine.items import Latent
from bestofn.service.engine.judge_residency import JudgeResidency
from bestofn.service.engine.microbatch import out_of_memory, release_cache
from bestofn.service.engine.postprocess import Postprocess
from bestofn.service.engine.prompts import PromptCache
from bestofn.service.engine.protocol import EngineEvent, HeatFailed, Stepped
from bestofn.service.engine.side_stream import SideStream
from bestofn.service.engine.slot_group import SlotGroup
from bestofn.service.engine.slot_groups import SlotGroups
from bestofn.service.engine.timing import Clock
from bestofn.service.media.provenance import Signer


class Engine(HeatEngine):
    """One device's slots, decoder and judge; `protocol.Engine` is the contract.

    A tick fills free slots and advances one group's slots by one step, in one batch (continuous batching). Then it
    decodes and judges full micro-batches and the last images of heats.
    """

    def __init__(
        self,
        generator: Generator,
        judge: JudgeResidency,
        model_info: ModelInfo,
        judge_info: JudgeInfo,
        tokenizer_files: Sequence[bytes],
        sizes: Sizes,
        side_stream: SideStream | None = None,
        record: Recorder = Recorded,
        fp8_drafts: bool = False,
        signer: Signer | None = None,
    ) -> None:
        """
        Args:
            generator: the generator.
            judge, model_info, judge_info, tokenizer_files, sizes, side_stream, signer: as of `HeatEngine`.
            record: how a forward that is repeated is called, where all weights stay in memory.
            fp8_drafts: drafts are denoised with FP8 matrix products.
        """
        announced = model_info, judge_info, tokenizer_files
        super().__init__(generator.device, judge, *announced, sizes, side_stream, signer)
        self.generator = generator
        self._prompts = PromptCache(generator.prompt_contexts)
        self._last: policy.Group | None = None
        self._flops = cache(generator.flops)
        self._solver_table = cache(generator.solver_table)
        self._cores = BatchPool(sizes.parallel)
        own = policy.Group(model_info.width, model_info.height)
        self._own_groups = [own, own._replace(fp8=True)][: 1 + fp8_drafts]
        record = record if judge.shared else plain
        self._groups = SlotGroups(generator, sizes, self._flops, self._cores, record, self._own_groups)
        self._fp8_drafts = fp8_drafts
        self._steps: deque[Clock] = deque()  # that were queued and not waited for
        shared = self._flops, self._cores, self._side_stream, self._make_room, self._encoder
        self._finishing = Postprocess(generator, judge, self._heats, sizes, *shared)

    def warm_up(self) -> None:
        """Loads what fits into memory, so that the first job does not wait for the disk.

        For a GPU it also builds kernels and records forwards, for images of the model's own size.

        Raises:
            MemoryError: one image of that size does not fit into memory.
        """
        self._judge.offload()
        self.generator.warm_up()
        if not self._judge.shared:
            return
        for number in range(self._judge.count):
            self._judge.get(number)
        if self.generator.device.type == "cuda":
            for group in self._own_groups:
                self._groups.open(group, *self._prompts.get([("", True)]))
                self._groups[group].warm_up()
            self._finishing.warm_up(group.size)
            torch.cuda.synchronize(self.generator.device)

    def _group(self, heat: Heat, draft: bool) -> policy.Group:
        spec = heat.job
        layers = (spec.draft_layers if draft else spec.layers) or ()
        return policy.Group(spec.width, spec.height, layers, fp8=draft and self._fp8_drafts)

    def tick(self) -> list[EngineEvent]:
        """One forward over the busy slots of one group, and the decoding and judging that became due.

        A GPU is given one step ahead of the one that it computes: this returns while it is busy.
        """
        events = super().tick()
        self._groups.close_idle()
        return events

    def _denoise(self) -> Steps[Stepped | HeatFailed, None, bool]:
        yield from self._refill()
        busy = {
            group: any(self._heats[one.owner].heat.job.priority == "interactive" for one in slots.occupants.values())
            for group, slots in self._groups.busy.items()
        }
        if busy:
            self._last = policy.turn(busy, self._last)
            yield from self._step(self._last, self._groups.use(self._last))
        return bool(busy)

    def _refill(self) -> Iterator[HeatFailed]:
        """Deals waiting candidates to free slots; a heat whose prompt cannot be read, or of whose size not one slot
        fits into memory, fails here."""
        for heat in self._waiting:
            if heat.group not in self._groups:
                work = self._heats[owner := heat.owner]
                yield from self._attempt(owner, "encoding the prompt", partial(self._contexts, work))
                if owner in self._heats:
                    opening = partial(self._groups.open, heat.group, self._contexts(work)[0])
                    yield from self._attempt(owner, denoising(heat.group), opening)
        free = {group: slots.free for group, slots in self._groups.items()}
        placements, self._waiting = policy.refill(free, self._waiting)
        for placement in placements:
            owner = placement.waiting.owner
            if owner in self._heats:  # else it failed with an earlier candidate
                filling = partial(self._fill, placement, self._heats[owner])
                yield from self._attempt(owner, "encoding the prompt", filling)

    def _attempt(self, owner: Owner, stage: str, work: Callable[[], object]) -> Iterator[HeatFailed]:
        """Does work for a heat, which fails if that cannot be done, or needs more memory than can be freed."""
        for retry in (True, False):
            try:
                work()
            except (ValueError, MemoryError, RuntimeError) as error:
                if isinstance(error, ValueError):  # too long for the generator or the judge
                    yield HeatFailed(*owner, str(error), final=True)
                    return
                if not out_of_memory(error):
                    raise
            else:
                return
            if not (retry and self._make_room()):  # the failed call's tensors are gone with its traceback
                break
        yield HeatFailed(*owner, f"{stage} needs more memory than is free")

    def _make_room(self) -> bool:
        """Free memory for a batch that does not fit even alone: first what is idle, then what is slower without.

        One thing a call: idle groups, the text encoder (read again for the next new prompt), half of the rows of all
        forwards. Returns whether something was freed, so that another attempt is worth its time.
        """
        groups = self._groups
        freed = groups.close_idle(0) or self.generator.release("text_encoder") or groups.halve_rows()
        if freed:
            release_cache()
        return freed

    def _fill(self, placement: policy.Placement, work: HeatWork) -> None:
        spec, waiting = work.heat.job, placement.waiting
        self._groups[waiting.group].fill(
            placement.slot,
            waiting.owner,
            placement.candidate,
            spec.seed + placement.candidate,
            self._solver_table(spec.steps_of(draft=waiting.draft)),
            spec.guidance_scale,
            self._contexts(work),
            draft=waiting.draft,
        )

    def _contexts(self, work: HeatWork) -> list[PromptContext]:
        """The contexts of a heat's prompt and, with guidance, its negative prompt; raises ValueError if too long."""
        spec = work.heat.job
        wanted = [(spec.prompt, False)]
        if self.generator.needs_negative(spec.guidance_scale):
            wanted.append((spec.negative_prompt, True))
        if missing := self._prompts.missing(wanted):
            self._finishing.check(spec)
            self._judge.offload()
        with Clock(self.generator.device) as clock:
            contexts = self._prompts.get(wanted)
        if missing:
            work.clocks.append(("text", clock, 1.0))
            work.tflops += len(missing) * self._flops(spec.width, spec.height).text / TERA
        return contexts

    def _step(self, group: policy.Group, slots: SlotGroup) -> Iterator[Stepped | HeatFailed]:
        occupants = dict(slots.occupants)
        steps = Counter(occupant.owner for occupant in occupants.values())
        rows: Counter[Owner] = Counter()
        for occupant in occupants.values():
            rows[occupant.owner] += len(occupant.prompts)
        self._judge.offload()
        try:
            with Clock(self.generator.device) as clock:
                finished = slots.step()
            self._steps.append(clock)
            if len(self._steps) > 1:
                self._steps.popleft().wait()
        except MemoryError:
            for owner in steps:
                yield HeatFailed(*owner, f"{denoising(group)} needs more memory than is free")
            return
        forward = self._flops(*group.size, group.depth).forward / TERA
        for owner, count in rows.items():
            work = self._heats[owner]
            work.clocks.append(("denoise", clock, count / rows.total()))
            work.counts["transformer"] += count
            work.tflops += count * forward
            work.warn(slots.shrunk)
        for slot, latent in finished:
            slots.drop(slot)
            occupant = occupants[slot]
            self._finishing.add(group.size, Latent(occupant.owner, occupant.candidate, latent, occupant.draft))
        for owner, count in steps.items():
            yield Stepped(*owner, count, rows[owner])

    def _stop(self, owner: Owner) -> None:
        for slots in self._groups.values():
            for slot in [slot for slot, occupant in slots.occupants.items() if occupant.owner == owner]:
                slots.drop(slot)
