"""Fast mode on a CPU: when the transformer computes in bfloat16, and which of its forwards are compiled."""

from collections.abc import Sequence
from pathlib import Path

from bestofn.models.defaults import FOLDERS
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.compiled import BackgroundCompilation, bfloat16_unit, processor_flags
from bestofn.service.engine.batch_sizes import bucket

BFLOAT16 = "+bfloat16"  # suffix of the revision of a generator in a pool


def low_precision(reproducible: str | None) -> bool:
    """Whether a CPU's transformer computes in bfloat16: in fast mode, where the processor multiplies in it."""
    return reproducible == "fast" and bfloat16_unit(processor_flags()) is not None


def forward_rows(most: int) -> list[int]:
    """Rows of the forwards to compile, if they have at most `most`: those of one row are rare and stay eager."""
    return sorted({bucket(rows, most) for rows in range(min(2, most), most + 1)}, reverse=True)


def compile_blocks(generator: Generator, data_dir: Path, rows: Sequence[int]) -> BackgroundCompilation:
    """Begin to compile the blocks for images of the model's own size, for each number of `rows`."""
    defaults = generator.defaults
    return BackgroundCompilation(
        generator.denoiser,
        generator.checkpoint.path / FOLDERS["transformer"],
        data_dir / "compiled",
        rows,
        generator.latent_shape(defaults.width, defaults.height)[1:],
        defaults.max_sequence_length,
    )
