"""Slot groups of an engine: one for each size, depth and precision in use, as many slots as fit into memory."""

from collections.abc import Callable, ItemsView, Iterator, ValuesView

from bestofn.models.defaults import Flops
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.context import PromptContext
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.cuda_graph import Recorder
from bestofn.service.engine.microbatch import out_of_memory, release_cache
from bestofn.service.engine.scheduler import Group, Size
from bestofn.service.engine.slot_group import SlotGroup
from bestofn.service.telemetry.worker_metrics import OUT_OF_MEMORY


class SlotGroups:
    """The open groups. A size whose buffers did not fit is remembered with the slots and rows that did."""

    def __init__(
        self,
        generator: Generator,
        sizes: Sizes,
        flops: Callable[..., Flops],
        cores: BatchPool,
        record: Recorder,
    ) -> None:
        self._generator = generator
        self._sizes = sizes
        self._flops = flops
        self._cores = cores
        self._record = record
        self._groups: dict[Group, SlotGroup] = {}
        self._fitting_slots: dict[Size, int] = {}
        self._fitting_rows: dict[Size, int] = {}

    def __contains__(self, group: Group) -> bool:
        return group in self._groups

    def __getitem__(self, group: Group) -> SlotGroup:
        return self._groups[group]

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def items(self) -> ItemsView[Group, SlotGroup]:
        return self._groups.items()

    def values(self) -> ValuesView[SlotGroup]:
        return self._groups.values()

    def open(self, group: Group, context: PromptContext) -> None:
        """Make the slots of a group, half as many until they fit into memory.

        Raises:
            MemoryError, RuntimeError: a single slot does not fit.
        """
        rows = self._sizes.batch(self._sizes.rows, self._flops(*group.size, group.depth).forward / TERA)
        while group not in self._groups:
            slots = self._fitting_slots.get(group.size, self._sizes.slots)
            known = self._fitting_rows.get(group.size)
            try:
                self._groups[group] = SlotGroup(
                    self._generator, group, slots, rows, self._sizes.strict, self._cores, context, known, self._record
                )
            except (MemoryError, RuntimeError) as error:
                if slots == 1 or not out_of_memory(error):
                    raise
                OUT_OF_MEMORY.labels("denoising").inc()
                self._fitting_slots[group.size] = slots // 2
            if group not in self._groups:
                release_cache()  # the failed call's tensors are gone only now that its traceback is

    def close(self, group: Group) -> None:
        """Free a group's buffers."""
        slots = self._groups.pop(group)
        if slots.shrunk:
            self._fitting_rows[group.size] = slots.most_rows
        slots.close()
