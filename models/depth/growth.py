"""Depth growth: a deeper checkpoint initialised from a trained one (SANA-1.5, arXiv 2501.18427, 2.2).

Partial preservation is the paper's choice. The last layers, which are specialised for the output, are dropped. New
layers follow. They add nothing at first, because their output passes through a zero matrix. So training starts from the
function of the shortened source. The two replications are the paper's alternatives, which diverged.
"""

from pathlib import Path
from typing import Literal, get_args

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.depth.rewrite import rewrite
from bestofn.models.errors import ModelError
from bestofn.models.linear_dit.config import LinearDiTConfig

Method = Literal["partial", "cyclic", "block"]
METHODS: tuple[Method, ...] = get_args(Method)
DROPPED = 2

# Where a block writes to the residual stream; with these at zero it is the identity.
OUTPUTS = ("attn1.to_out.0.weight", "attn1.to_out.0.bias", "attn2.to_out.0.weight", "attn2.to_out.0.bias")
ZERO = (*OUTPUTS, "ff.conv_point.weight", "attn2.to_q.bias", "attn2.to_k.bias", "attn2.to_v.bias")


def grow(
    checkpoint: Checkpoint, out: Path, layers: int, method: Method = "partial", dropped: int = DROPPED, seed: int = 0
) -> Path:
    """Write a deeper checkpoint in diffusers layout; see `bestofn.models.depth.rewrite.rewrite` for memory and errors.

    Args:
        checkpoint: the source.
        out: a new or empty folder.
        layers: number of the result's layers; more than the source has.
        method: ``partial`` preservation, ``cyclic`` or ``block`` replication.
        dropped: last blocks of the source that partial preservation leaves out.
        seed: seed of new weights.

    Raises:
        ModelError: a depth or a number of dropped blocks that makes no sense, with the source's depth.
    """
    before = LinearDiTConfig.from_file(checkpoint.path / "transformer" / "config.json").num_layers
    blocks = grown_blocks(method, before, layers, dropped)
    how = (
        f"partial preservation, last {dropped} dropped, seed {seed}" if method == "partial" else f"{method} replication"
    )
    return rewrite(checkpoint, out, blocks, initial, seed, f"grown from {before} to {layers} layers ({how})")


def grown_blocks(method: Method, before: int, layers: int, dropped: int = DROPPED) -> list[int | None]:
    """The blocks of the deeper model, as indices into the source's ``before``; None for a new block."""
    if layers <= before:
        raise ModelError(f"the checkpoint has {before} layers: grow it to more than that, got {layers}")
    if method == "cyclic":
        return [i % before for i in range(layers)]
    if method == "block":
        return [i * before // layers for i in range(layers)]
    if not 0 <= dropped < before:
        raise ModelError(f"the checkpoint has {before} layers: drop 0 to {before - 1} of them, got {dropped}")
    kept = before - dropped
    return [i if i < kept else None for i in range(layers)]


def target_layers(to: str, before: int) -> int:
    """The depth that ``2x`` (times the source's) or ``60`` (layers) means."""
    number = to.removesuffix("x")
    if not number.isdecimal():
        raise ModelError(f"the new depth is a multiple such as 2x or a number of layers such as 60, got {to!r}")
    return int(number) * (before if to.endswith("x") else 1)


def initial(name: str) -> tuple[float, float]:
    """Mean and standard deviation of a new block's weight, as NVlabs/Sana's ``model_growth_utils`` (``constant``)."""
    if "norm" in name:
        return (1.0 if name.endswith("weight") else 0.0), 0.0
    if name in ZERO:
        return 0.0, 0.0
    return 0.0, 0.2 if "conv_depth" in name else 0.02
