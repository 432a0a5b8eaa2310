"""Whether the benchmark's evaluator can measure the images of a generator, which depends on their size alone."""

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.sampling import default_size
from bestofn.models.shapes.world import CANVAS


def misfit(name: str, size: tuple[int, int]) -> str:
    """Why images of a size, in pixels, cannot be measured; empty: they can."""
    if size == (CANVAS, CANVAS):
        return ""
    return f"{name} draws {size[0]}x{size[1]}, and the benchmark's evaluator measures {CANVAS}x{CANVAS}"


def misfit_before_loading(name: str, checkpoint: Checkpoint) -> str:
    """`misfit` of a checkpoint whose size is known without its weights; empty for any other."""
    size = default_size(checkpoint)
    return misfit(name, size) if size else ""
