"""The slots of one resolution: their latents, their rows of the transformer's batch, and one step of all of them.

S slots, R rows of a lane, C latent channels, (h, w) latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bestofn.models.generator import Generator
from bestofn.models.guidance import guide
from bestofn.models.linear_dit import PromptContext
from bestofn.models.solver import SolverTable, StepCoefficients, solver_step
from bestofn.service.engine.cores import Cores
from bestofn.service.engine.microbatch import out_of_memory, release_cache
from bestofn.service.engine.sizes import bucket
from bestofn.service.engine.slots import Group, chunks, lowest_free
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
    """S slots of one resolution.

    The batch's rows are cut into lanes of R rows. With strict reproducibility every forward is one lane, whole: its
    free rows are computed as padding, since a kernel may round otherwise for another number of rows, and a lane
    without an occupant is skipped. Otherwise there is one lane, of which a forward takes the first rows, as many
    as are occupied, rounded up to a power of two.

    Prompt contexts are written into a lane's buffers once, when a slot is filled.
    """

    def __init__(self, generator: Generator, group: Group, slots: int, lane: int, strict: bool, cores: Cores) -> None:
        """
        Args:
            group: width and height in pixels.
            slots: S.
            lane: R.
            cores: how many forwards at once.
        """
        self._cores = cores
        self._generator = generator
        self._group = group
        self._lane = lane if strict else 2 * slots
        self._strict = strict
        self._most_rows = self._lane  # of one forward, as far as memory sufficed
        shape = (slots, *generator.latent_shape(*group))
        device = generator.device
        self._x = torch.zeros(shape, device=device)  # (S, C, h, w)
        self._previous = torch.zeros(shape, device=device)  # (S, C, h, w)
        self._contexts: dict[int, PromptContext] = {}  # of each lane in use, R rows
        self.occupants: dict[int, Occupant] = {}
        self.slots = slots

    @property
    def free(self) -> list[int]:
        return [slot for slot in range(self.slots) if slot not in self.occupants]

    @property
    def shrunk(self) -> str | None:
        """A sentence for the user, if forwards had to shrink."""
        if self._most_rows == self._lane:
            return None
        return (
            f"denoising ran in batches of {self._most_rows} rows instead of {self._lane} for lack of memory, so "
            "pictures may differ in their last bits from those of another run"
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
        noise = self._generator.noise(seed, *self._group, draws=1 + table.noise_draws).to(self._x.device)
        self._x[slot] = noise[0]
        self._previous[slot] = 0.0
        self.occupants[slot] = Occupant(owner, candidate, table, guidance_scale, noise[1:], rows, draft)

    def drop(self, slot: int) -> None:
        """Empties a slot."""
        del self.occupants[slot]

    def rest(self) -> None:
        """Gives the memory of the contexts back while no slot is in use."""
        self._contexts.clear()

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Tensor]]:
        """Advances every occupant by one step.

        Returns:
            The slots that finished, each with its latent (C, h, w); they stay occupied until they are dropped.

        Raises:
            MemoryError: not even a single row fits into memory.
        """
        coefficients = torch.zeros(self.slots, 8)
        scales = torch.ones(self.slots)
        for slot, occupant in self.occupants.items():
            coefficients[slot] = occupant.table.rows[occupant.step]
            scales[slot] = occupant.guidance_scale
        coefficients, scales = coefficients.to(self._x.device), scales.to(self._x.device)

        output, place = self._forward(coefficients, scales)  # (rows, C, h, w)
        # A slot without a negative row points at its own row twice and keeps it, and an idle slot at any.
        first = torch.tensor([place[self._rows(slot)[0]] for slot in range(self.slots)], device=self._x.device)
        last = torch.tensor([place[self._rows(slot)[-1]] for slot in range(self.slots)], device=self._x.device)
        velocity = guide(output[first], output[last], torch.where(first == last, 1.0, scales))  # (S, C, h, w)
        self._x, self._previous = solver_step(
            self._x, self._previous, velocity, StepCoefficients.of(coefficients), self._fresh_noise()
        )

        finished = []
        for slot, occupant in list(self.occupants.items()):
            occupant.step += 1
            if occupant.step == occupant.table.steps:
                finished.append((slot, self._x[slot].clone()))
        return finished

    def _rows(self, slot: int) -> tuple[int, ...]:
        """The slot's rows; an idle slot reads any row that is computed, and nothing reads the result."""
        occupant = self.occupants.get(slot)
        return occupant.rows if occupant else next(iter(self.occupants.values())).rows

    def _forward(self, coefficients: Tensor, scales: Tensor) -> tuple[Tensor, dict[int, int]]:
        """The network's output for all lanes in use, and where in it each row stands."""
        slot_of = {row: slot for slot, occupant in self.occupants.items() for row in occupant.rows}
        any_slot = next(iter(self.occupants))
        waiting: list[range] = []
        for lane in chunks(slot_of, self._lane):
            used = len(lane) if self._strict else bucket(max(slot_of) - lane.start + 1, len(lane))
            waiting += self._parts(lane[:used])
        outputs: list[Tensor] = []
        place: dict[int, int] = {}

        def output(rows: range) -> Tensor | None:
            slots = torch.tensor([slot_of.get(row, any_slot) for row in rows], device=self._x.device)
            return self._output(rows, slots, coefficients, scales)

        while waiting:
            failed = []
            for rows, done in zip(waiting, self._cores.map(output, waiting), strict=True):
                if done is None:
                    failed.append(rows)
                else:
                    place |= {row: len(place) + i for i, row in enumerate(rows)}
                    outputs.append(done)
            if failed:
                if self._most_rows == 1:
                    raise MemoryError("a single row does not fit")
                release_cache()
                self._most_rows = max(1, min(self._most_rows, max(map(len, failed))) // 2)
            waiting = [part for rows in failed for part in self._parts(rows)]
        return torch.cat(outputs), place

    def _parts(self, rows: range) -> list[range]:
        """Rows of one lane as forwards of at most as many as memory sufficed for."""
        return [rows[start : start + self._most_rows] for start in range(0, len(rows), self._most_rows)]

    def _output(self, rows: range, slots: Tensor, coefficients: Tensor, scales: Tensor) -> Tensor | None:
        """The network's output for rows of one lane; None if they do not fit into memory."""
        lane, start = divmod(rows.start, self._lane)
        try:
            return self._generator.output(
                self._x[slots],
                StepCoefficients.of(coefficients[slots]),
                self._contexts[lane].rows(start, start + len(rows)),
                scales[slots],
            )
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            OUT_OF_MEMORY.labels("denoising").inc()
            return None

    def _fresh_noise(self) -> Tensor | None:
        """z of this step, (S, C, h, w), for solvers that add noise; None if none does now."""
        drawing = {s: o for s, o in self.occupants.items() if o.step < o.table.noise_draws}
        if not drawing:
            return None
        noise = torch.zeros_like(self._x)
        for slot, occupant in drawing.items():
            noise[slot] = occupant.noise[occupant.step]
        return noise
