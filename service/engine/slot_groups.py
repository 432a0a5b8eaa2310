"""Slot groups of an engine: one for each size, depth and precision in use, as many slots as fit into memory."""

from collections.abc import Callable, Collection

from bestofn.models.defaults import Flops
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.context import PromptContext
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.cuda_graph import Recorder
from bestofn.service.engine.microbatch import out_of_memory, release_cache
from bestofn.service.engine.prompts import PromptTable
from bestofn.service.engine.scheduler import Group, Size, to_close
from bestofn.service.engine.slot_group import SlotGroup
from bestofn.service.telemetry.metrics import OUT_OF_MEMORY

IDLE_GROUPS = 2  # kept open behind those in use: sizes and depths are without number


class SlotGroups(dict[Group, SlotGroup]):
    """The open groups, the one used last at the end.

    An idle group is kept for a while, since a GPU would have to record its forwards again. The model's own size is
    never closed. A size whose buffers did not fit is remembered with the slots and rows that did.
    """

    def __init__(
        self,
        generator: Generator,
        sizes: Sizes,
        flops: Callable[..., Flops],
        batch_pool: BatchPool,
        record: Recorder,
        always: Collection[Group] = (),
    ) -> None:
        """
        Args:
            always: the groups that are never closed once they are open.
        """
        super().__init__()
        self._generator = generator
        self._sizes = sizes
        self._flops = flops
        self._cores = batch_pool
        self._record = record
        self._always = always
        self._prompts: PromptTable | None = None
        self._fitting_slots: dict[Size, int] = {}
        self._fitting_rows: dict[Size, int] = {}
        self._halved = False

    @property
    def busy(self) -> dict[Group, SlotGroup]:
        """The groups with an occupant."""
        return {group: slots for group, slots in self.items() if slots.occupants}

    def open(self, group: Group, context: PromptContext) -> None:
        """Make the slots of a group, half as many until they fit into memory; idle groups are closed first.

        Raises:
            MemoryError, RuntimeError: a single slot does not fit.
        """
        if self._prompts is None:
            self._prompts = PromptTable(context)
        rows = self._sizes.batch(self._sizes.rows, self._flops(*group.size, group.depth).forward / TERA)
        while group not in self:
            slots = self._fitting_slots.get(group.size, self._sizes.slots)
            sizes = (group, slots, rows, self._sizes.strict)
            known = self._fitting_rows.get(group.size)
            try:
                self[group] = SlotGroup(
                    self._generator, *sizes, self._cores, self._prompts, known, self._record, lambda: self.close_idle(0)
                )
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                OUT_OF_MEMORY.labels("denoising").inc()
                if not self.close_idle(0):
                    if slots == 1:
                        raise
                    self._fitting_slots[group.size] = slots // 2
            if group not in self:
                release_cache()  # the failed call's tensors are gone only now that its traceback is

    def use(self, group: Group) -> SlotGroup:
        """A group that is about to be stepped, from now on the one used last."""
        self[group] = self.pop(group)
        return self[group]

    def close_idle(self, kept: int = IDLE_GROUPS) -> bool:
        """Free the buffers of idle groups but for those used last; returns whether there was one."""
        closing = to_close(list(self), self.busy, self._always, kept)
        for group in closing:
            slots = self.pop(group)
            if slots.shrunk:
                self._fitting_rows[group.size] = slots.most_rows
            slots.close()
        return bool(closing)

    def halve_rows(self) -> bool:
        """Halve the rows of all forwards, once, for what else needs memory; returns whether that was possible."""
        halving = [] if self._halved else [slots for slots in self.values() if slots.most_rows > 1]
        self._halved = self._halved or bool(halving)
        for slots in halving:
            slots.shrink(slots.most_rows)
        return bool(halving)
