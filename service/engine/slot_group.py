"""Slot group: latents of the slots of one size, rows of the transformer's batch, and one step of all slots.

S slots, R rows of a lane, C latent channels, (h, w) latent grid. A forward reads and writes fixed buffers, so that a
GPU can replay it. Values from the host are uploaded without waiting for the device.
"""

import weakref
from collections.abc import Callable, Sequence
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
from bestofn.service.engine.batch_sizes import bucket, forwards
from bestofn.service.engine.cuda_graph import Recorded, Recorder
from bestofn.service.engine.microbatch import out_of_memory, release_cache, shrunk_batches
from bestofn.service.engine.prompts import PromptTable
from bestofn.service.engine.scheduler import Group
from bestofn.service.telemetry.metrics import OUT_OF_MEMORY


@dataclass(slots=True)
class Occupant:
    """The candidate in a slot.

    Attributes:
        owner: (job, heat) it belongs to.
        candidate: its index in the job.
        table: its solver; `step` is the next row.
        guidance_scale: its request's guidance scale.
        noise: (draws, C, h, w) on the device, fresh noise of later steps.
        prompts: places in the prompt table, one a row of the batch: the prompt's, and the negative prompt's where
            guidance needs one.
        draft: whether this is its draft.
    """

    owner: tuple[str, int]
    candidate: int
    table: SolverTable
    guidance_scale: float
    noise: Tensor
    prompts: tuple[int, ...]
    draft: bool
    step: int = 0


class SlotGroup:
    """S slots of one resolution and depth.

    Occupants take the first rows of the batch, one or two each, dealt out again at every step. With strict
    reproducibility a forward is a lane of R rows, the free ones padding. A kernel may round differently for another
    number of rows. Otherwise one forward takes all rows in use, rounded up to a bucket.

    Rows read their prompt from the prompt table, which all groups share.
    """

    def __init__(
        self,
        generator: Generator,
        group: Group,
        slots: int,
        lane: int,
        strict: bool,
        batch_pool: BatchPool,
        prompts: PromptTable,
        most_rows: int | None = None,
        record: Recorder = Recorded,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            group: width and height in pixels, and the transformer's blocks that run.
            slots: S.
            lane: R.
            batch_pool: pool of parallel forwards.
            prompts: the prompt table.
            most_rows: maximum rows of one forward, where memory is known not to suffice for more.
            record: how a forward is called.
            make_room: frees what is idle, before forwards shrink; returns whether there was something.
        """
        self._make_room = make_room
        self._record = record
        self._cores = batch_pool
        self._generator = generator
        self._group = group
        most = slots * (1 if generator.config.guidance_embeds else 2)  # rows in use
        self._lane = lane if strict else min(lane, most)
        self._strict = strict
        self.most_rows = min(
            self._lane, most_rows or self._lane
        )  # maximum rows of one forward, as far as memory sufficed
        rows, shape = -(-most // self._lane) * self._lane, generator.latent_shape(*group.size)
        device = generator.device
        self._x = torch.zeros(slots, *shape, device=device)  # (S, C, h, w)
        self._previous = torch.zeros(slots, *shape, device=device)  # (S, C, h, w)
        self._values = torch.zeros(slots, 9, device=device)  # each slot's solver row and guidance scale
        self._slots = torch.zeros(rows, dtype=torch.long, device=device)  # each row's slot
        self._pairs = torch.zeros(2, slots, dtype=torch.long, device=device)  # each slot's first and last row
        self._output = torch.zeros(rows, *shape, device=device, dtype=generator.dtypes["transformer"])
        self._reads = torch.zeros(rows, dtype=torch.long, device=device)  # each row's place in the prompt table
        self._prompts = prompts
        self._forwards: dict[range, Callable[[], object]] = {}  # by the rows of one lane
        self._recorded_of: tuple[weakref.ref[Any], ...] = ()  # the transformer and the prompts that they read
        self._pool: Any = None  # memory pool of the recorded forwards
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
        return shrunk_batches("denoising", f"{self.most_rows} rows", self._lane)

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
            contexts: the prompt's and, where guidance needs it, the negative prompt's.
        """
        assert slot not in self.occupants
        noise = uploaded(self._generator.noise(seed, *self._group.size, draws=1 + table.noise_draws), self._x.device)
        self._x[slot] = noise[0]
        self._previous[slot] = 0.0
        places = self._take(contexts)
        self.occupants[slot] = Occupant(owner, candidate, table, guidance_scale, noise[1:], places, draft)

    def _take(self, contexts: Sequence[PromptContext]) -> tuple[int, ...]:
        places: list[int] = []
        try:
            places.extend(map(self._prompts.take, contexts))
        except (MemoryError, RuntimeError):
            for place in places:
                self._prompts.give_back(place)
            raise
        return tuple(places)

    def drop(self, slot: int) -> None:
        """Empties a slot."""
        for place in self.occupants.pop(slot).prompts:
            self._prompts.give_back(place)

    def close(self) -> None:
        """Forgets the recorded forwards, which would keep it in memory."""
        self._forwards.clear()

    def _free_memory(self, rows: int) -> None:
        """What idle groups hold goes before rows do; raises MemoryError if neither is possible."""
        if self._make_room():
            release_cache()
        else:
            self.shrink(rows)

    def shrink(self, rows: int) -> None:
        """Halves the rows of a forward, of which `rows` did not fit into memory, and frees what was recorded.

        Raises:
            MemoryError: a forward has one row already.
        """
        if self.most_rows == 1:
            raise MemoryError("a single row does not fit")
        self._forwards.clear()
        release_cache()
        self.most_rows = max(1, min(self.most_rows, rows) // 2)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Builds and records the forwards of the first lane, the largest first, since all share its memory.

        Raises:
            MemoryError: not even a single row fits into memory.
        """
        assert not self.occupants
        sizes = {self._lane} if self._strict else {bucket(rows, self._lane) for rows in range(1, self._lane + 1)}
        waiting = sorted((size for size in sizes if size <= self.most_rows), reverse=True) or [self.most_rows]
        while waiting:
            rows = waiting[0]
            if self._forward(range(rows)) and self._forward(range(rows)):
                waiting.pop(0)
            else:
                self._free_memory(rows)
                sizes = {size for size in waiting if size < self.most_rows} | {min(rows, self.most_rows)}
                waiting = sorted(sizes, reverse=True)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Tensor]]:
        """Advances every occupant by one step.

        Returns:
            The slots that finished, each with its latent (C, h, w); they stay occupied until they are dropped.

        Raises:
            MemoryError: not even a single row fits into memory.
        """
        self._upload()
        self._forward_all(sum(len(occupant.prompts) for occupant in self.occupants.values()))
        first, last = self._pairs  # first == last if the slot has no negative-prompt row, or is idle
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
        reads = torch.full(self._reads.shape, any_one.prompts[0])
        row = 0
        for slot, occupant in self.occupants.items():
            count = len(occupant.prompts)
            values[slot, :8] = occupant.table.rows[occupant.step]
            values[slot, 8] = occupant.guidance_scale
            pairs[0, slot], pairs[1, slot] = row, row + count - 1  # an idle slot reads row 0, in vain
            slots[row : row + count] = slot
            reads[row : row + count] = torch.tensor(occupant.prompts)
            row += count
        uploads = ((values, self._values), (pairs, self._pairs), (slots, self._slots), (reads, self._reads))
        for here, there in uploads:
            there.copy_(uploaded(here, there.device))

    def _forward_all(self, used: int) -> None:
        """Computes the output of the first `used` rows."""
        lanes = forwards(used, self._lane, self._strict, self._cores.count)
        waiting = [part for rows in lanes for part in self._parts(rows)]
        while waiting:
            done = self._cores.map(self._forward, waiting)
            failed = [rows for rows, fitted in zip(waiting, done, strict=True) if not fitted]
            if failed:
                self._free_memory(max(map(len, failed)))
            waiting = [part for rows in failed for part in self._parts(rows)]

    def _parts(self, rows: range) -> list[range]:
        """Rows of one lane as forwards of at most as many as memory sufficed for."""
        return [rows[start : start + self.most_rows] for start in range(0, len(rows), self.most_rows)]

    def _forward(self, rows: range) -> bool:
        """The network's output for rows of one lane; False if they do not fit into memory."""
        try:
            denoiser = self._generator.denoiser
            read = (denoiser, self._prompts.buffers)
            if not self._recorded_of or any(was() is not now for was, now in zip(self._recorded_of, read, strict=True)):
                self._forwards.clear()  # weights were read again, or the table has grown: they lie elsewhere
                self._recorded_of = tuple(map(weakref.ref, read))
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
        slots = self._slots[rows.start : rows.stop]
        values = self._values[slots]
        self._output[rows.start : rows.stop] = self._generator.output(
            self._x[slots],
            StepCoefficients.of(values[:, :8]),
            self._prompts.buffers.select(self._reads[rows.start : rows.stop]),
            values[:, 8],
            self._group.layers or None,
            fp8=self._group.fp8,
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
