"""Slot group: latents of the slots of one size, rows of the transformer's batch, and one step of all slots.

S slots, R rows of a lane, C latent channels, (h, w) latent grid. A forward reads and writes fixed buffers, so that a
GPU can replay it. Values from the host are uploaded without waiting for the device.
"""

import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bestofn.kernels.transfer import uploaded
from bestofn.models.generator import Generator
from bestofn.models.guidance import guide
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.solver import SolverTable, StepCoefficients, solver_step
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import bucket
from bestofn.service.engine.cuda_graph import Recorded, Recorder
from bestofn.service.engine.microbatch import out_of_memory, release_cache
from bestofn.service.engine.scheduler import Group, chunks, lowest_free
from bestofn.service.telemetry.worker_metrics import OUT_OF_MEMORY


@dataclass(slots=True)
class Occupant:
    """The candidate in a slot.

    Attributes:
        owner: (job, heat) it belongs to.
        candidate: its index in the job.
        table: its solver; `step` is the next row.
        guidance_scale: of its request.
        noise: (draws, C, h, w) on the device, fresh noise of later steps.
        rows: its rows of the batch: the prompt's, and the negative prompt's where guidance needs one.
        draft: whether this is its draft.
    """

    owner: tuple[str, int]
    candidate: int
    table: SolverTable
    guidance_scale: float
    noise: Tensor
    rows: tuple[int, ...]
    draft: bool
    step: int = 0


class SlotGroup:
    """S slots of one resolution and depth.

    The batch's rows are cut into lanes of R rows. With strict reproducibility every forward is one whole lane: free
    rows are padding, because a kernel may round differently for another number of rows. A lane without an occupant is
    skipped. Otherwise there is one lane. A forward takes its first rows, rounded up to a power of two.

    Prompt contexts are written into a lane's buffers once, when a slot is filled.
    """

    def __init__(
        self,
        generator: Generator,
        group: Group,
        slots: int,
        lane: int,
        strict: bool,
        batch_pool: BatchPool,
        context: PromptContext,
        most_rows: int | None = None,
        record: Recorder = Recorded,
    ) -> None:
        """
        Args:
            group: width and height in pixels, and the transformer's blocks that run.
            slots: S.
            lane: R.
            cores: how many forwards at once.
            context: of any prompt, shaped like all of them.
            most_rows: of one forward, where memory is known not to suffice for more.
            record: how a forward is called.
        """
        self._record = record
        self._cores = batch_pool
        self._generator = generator
        self._group = group
        self._lane = lane if strict else 2 * slots
        self._strict = strict
        self.most_rows = min(self._lane, most_rows or self._lane)  # of one forward, as far as memory sufficed
        rows, shape = -(-2 * slots // self._lane) * self._lane, generator.latent_shape(*group.size)
        device = generator.device
        self._x = torch.zeros(slots, *shape, device=device)  # (S, C, h, w)
        self._previous = torch.zeros(slots, *shape, device=device)  # (S, C, h, w)
        self._values = torch.zeros(slots, 9, device=device)  # of each slot: its solver's row and its guidance scale
        self._slots = torch.zeros(rows, dtype=torch.long, device=device)  # of each row
        self._pairs = torch.zeros(2, slots, dtype=torch.long, device=device)  # of each slot: its first and its last row
        self._output = torch.zeros(rows, *shape, device=device, dtype=generator.dtypes["transformer"])
        self._contexts = {0: context.empty_slots(self._lane)}  # of each lane in use, R rows
        self._forwards: dict[range, Callable[[], object]] = {}  # of rows of one lane
        self._recorded_of: weakref.ref[Any] | None = None  # the transformer whose weights they read
        self._pool: Any = None  # of the recorded forwards' memory
        self.occupants: dict[int, Occupant] = {}
        self.slots = slots

    @property
    def free(self) -> list[int]:
        return [slot for slot in range(self.slots) if slot not in self.occupants]

    @property
    def shrunk(self) -> str | None:
        """A sentence for the user, if forwards had to shrink."""
        if self.most_rows == self._lane:
            return None
        return (
            f"denoising ran in batches of {self.most_rows} rows instead of {self._lane} for lack of memory, so "
            "images may differ in their last bits from those of another run"
        )

    @torch.inference_mode()
    def fill(
        self,
        slot: int,
        owner: tuple[str, int],
        candidate: int,
        seed: int,
        table: SolverTable,
        guidance_scale: float,
        contexts: Sequence[PromptContext],
        *,
        draft: bool = False,
    ) -> None:
        """Puts a candidate into a free slot.

        Args:
            contexts: of the prompt and, where guidance needs it, of the negative prompt.
        """
        assert slot not in self.occupants
        taken = {row for occupant in self.occupants.values() for row in occupant.rows}
        rows = lowest_free(taken, len(contexts))
        for row, context in zip(rows, contexts, strict=True):
            lane, place = divmod(row, self._lane)
            if lane not in self._contexts:
                self._contexts[lane] = context.empty_slots(self._lane)
            self._contexts[lane].write(place, context)
        noise = uploaded(self._generator.noise(seed, *self._group.size, draws=1 + table.noise_draws), self._x.device)
        self._x[slot] = noise[0]
        self._previous[slot] = 0.0
        self.occupants[slot] = Occupant(owner, candidate, table, guidance_scale, noise[1:], rows, draft)

    def drop(self, slot: int) -> None:
        """Empties a slot."""
        del self.occupants[slot]

    def close(self) -> None:
        """Forgets the recorded forwards, which would keep it in memory."""
        self._forwards.clear()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Builds and records the forwards of the first lane, the largest first, since all share its memory."""
        assert not self.occupants
        sizes = {self._lane} if self._strict else {bucket(rows, self._lane) for rows in range(1, self._lane + 1)}
        for rows in sorted(sizes, reverse=True):
            for _ in range(2):
                self._forward(range(rows))

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Tensor]]:
        """Advances every occupant by one step.

        Returns:
            The slots that finished, each with its latent (C, h, w); they stay occupied until they are dropped.

        Raises:
            MemoryError: not even a single row fits into memory.
        """
        self._upload()
        self._forward_all({row for occupant in self.occupants.values() for row in occupant.rows})
        first, last = self._pairs  # the same of a slot without a negative row, which keeps its own, and of an idle one
        at, scales = StepCoefficients.of(self._values[:, :8]), torch.where(first == last, 1.0, self._values[:, 8])
        velocity = guide(self._output[first], self._output[last], scales)  # (S, C, h, w)
        x, previous = solver_step(self._x, self._previous, velocity, at, self._fresh_noise())
        self._x.copy_(x)
        self._previous.copy_(previous)

        finished = []
        for slot, occupant in list(self.occupants.items()):
            occupant.step += 1
            if occupant.step == occupant.table.steps:
                finished.append((slot, self._x[slot].clone()))
        return finished

    def _upload(self) -> None:
        """Upload the step and rows of each occupant to the device."""
        values, pairs = torch.zeros(self._values.shape), torch.zeros(self._pairs.shape, dtype=torch.long)
        any_slot, any_one = next(iter(self.occupants.items()))
        slots = torch.full(self._slots.shape, any_slot)  # padding computes what some slot asks for
        pairs[:] = any_one.rows[0]  # an idle slot reads any row that is computed, and nothing reads the result
        for slot, occupant in self.occupants.items():
            values[slot, :8] = occupant.table.rows[occupant.step]
            values[slot, 8] = occupant.guidance_scale
            pairs[0, slot], pairs[1, slot] = occupant.rows[0], occupant.rows[-1]
            for row in occupant.rows:
                slots[row] = slot
        for here, there in ((values, self._values), (pairs, self._pairs), (slots, self._slots)):
            there.copy_(uploaded(here, there.device))

    def _forward_all(self, used: Collection[int]) -> None:
        """Computes the output of all lanes with a row in use."""
        waiting: list[range] = []
        for lane in chunks(used, self._lane):
            length = len(lane) if self._strict else bucket(max(used) - lane.start + 1, len(lane))
            waiting += self._parts(lane[:length])
        while waiting:
            done = self._cores.map(self._forward, waiting)
            failed = [rows for rows, fitted in zip(waiting, done, strict=True) if not fitted]
            if failed:
                if self.most_rows == 1:
                    raise MemoryError("a single row does not fit")
                self._forwards.clear()
                release_cache()
                self.most_rows = max(1, min(self.most_rows, max(map(len, failed))) // 2)
            waiting = [part for rows in failed for part in self._parts(rows)]

    def _parts(self, rows: range) -> list[range]:
        """Rows of one lane as forwards of at most as many as memory sufficed for."""
        return [rows[start : start + self.most_rows] for start in range(0, len(rows), self.most_rows)]

    def _forward(self, rows: range) -> bool:
        """The network's output for rows of one lane; False if they do not fit into memory."""
        try:
            denoiser = self._generator.denoiser
            if self._recorded_of is None or self._recorded_of() is not denoiser:
                self._forwards.clear()  # its weights were read again, and lie elsewhere
                self._recorded_of = weakref.ref(denoiser)
            forward = self._forwards.get(rows)
            if forward is None:
                if not self._forwards and self._x.is_cuda:  # torch takes no pool again whose graphs are all gone
                    self._pool = torch.cuda.graph_pool_handle()
                forward = self._forwards[rows] = self._record(partial(self._compute, rows), self._x.device, self._pool)
            forward()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            OUT_OF_MEMORY.labels("denoising").inc()
            return False
        return True

    @torch.inference_mode()
    def _compute(self, rows: range) -> None:
        lane, start = divmod(rows.start, self._lane)
        slots = self._slots[rows.start : rows.stop]
        values = self._values[slots]
        self._output[rows.start : rows.stop] = self._generator.output(
            self._x[slots],
            StepCoefficients.of(values[:, :8]),
            self._contexts[lane].rows(start, start + len(rows)),
            values[:, 8],
            self._group.layers or None,
            eight_bit=self._group.eight_bit,
        )

    def _fresh_noise(self) -> Tensor | None:
        """z of this step, (S, C, h, w), for solvers that add noise; None if none does now."""
        drawing = {s: o for s, o in self.occupants.items() if o.step < o.table.noise_draws}
        if not drawing:
            return None
        noise = torch.zeros_like(self._x)
        for slot, occupant in drawing.items():
            noise[slot] = occupant.noise[occupant.step]
        return noise
