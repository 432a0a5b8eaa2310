"""The Triton kernels at SANA-1.5's shapes on a GPU: right first, then how fast, against what this GPU can do.

    python -P tests/bench/operators.py [ROWS...]       rows of a batch, 2 and 64 if left out
    python -P tests/bench/operators.py --floors        bytes, operations and the least time, on any machine
    TRITON_INTERPRET=1 python -P tests/bench/operators.py    the gate alone, small, on a CPU

An operator whose result is not near the float32 reference is reported as red, without any time, and the exit status is
1. Times are medians with a cold L2, bytes count each tensor once, and the ceiling is a copy measured in the same run.
"""

# ruff: noqa: T201

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bestofn.kernels.cross_attention import cross_attention
from bestofn.kernels.dispatch import launcher
from bestofn.kernels.gated_depthwise import gated_depthwise
from bestofn.kernels.linear_attention import relu_linear_attention
from bestofn.kernels.modulate import gated_residual, modulated_norm, residual_norm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter knows no bfloat16
TOLERANCE = 1e-3 if INTERPRETED else 8e-3  # the result and the operands of products are rounded to DTYPE once
GATE_ROWS = 2  # of the batch are compared: a row has the same bits whatever the batch
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, by the datasheets
EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """One transformer block's: the image's side in tokens, heads and channels, F, the text's true and padded length."""

    side: int
    heads: int
    head: int
    cross_heads: int
    hidden: int
    text: int
    padded: int

    @property
    def tokens(self) -> int:
        return self.side**2

    @property
    def width(self) -> int:
        return self.heads * self.head


SANA = Shape(side=32, heads=70, head=32, cross_heads=20, hidden=5600, text=60, padded=300)  # 1.6B and 4.8B at 1,024 px
TOY = Shape(side=4, heads=2, head=16, cross_heads=2, hidden=24, text=5, padded=9)


@dataclass(frozen=True)
class Work:
    """What an operator has to do for one row of a batch: bytes moved, each tensor once, and operations."""

    moved: int
    operations: int


def work(s: Shape) -> dict[str, Work]:
    """Of every operator, bfloat16."""
    u = 2 * s.tokens * s.width  # bytes of the tokens
    state = 2 * 4 * s.width * (s.head + 1)  # written and read
    return {
        "modulated_norm": Work(2 * u, 0),
        "gated_residual": Work(3 * u, 0),
        "residual_norm": Work(4 * u, 0),
        "relu_linear_attention": Work(5 * u + state, 2 * s.tokens * s.width * (2 * s.head + 1)),
        "gated_depthwise": Work(2 * 3 * s.tokens * s.hidden, 2 * 9 * 2 * s.tokens * s.hidden),
        # all rows share the keys and values of two prompts, which are next to nothing
        "cross_attention": Work(3 * u, 4 * s.tokens * s.text * s.width),
    }


def calls(s: Shape, B: int) -> dict[Any, tuple[Any, ...]]:
    """Every operator with the arguments of one call."""
    N, D = s.tokens, s.width

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=DTYPE)

    shift, scale, gate = noise(B, 6, D).chunk(6, dim=1)[:3]
    keys, values = noise(2, 2, s.cross_heads, s.padded, D // s.cross_heads)  # of a prompt and the negative one
    seen = torch.arange(s.padded, device=DEVICE) < s.text
    bias = torch.where(seen, 0.0, -10_000.0).to(DTYPE).expand(2, 1, 1, -1).contiguous()
    prompts = torch.arange(B, device=DEVICE) % 2
    return {
        modulated_norm: (noise(B, N, D), shift, scale, EPS, None, None),
        gated_residual: (noise(B, N, D), gate, noise(B, N, D)),
        residual_norm: (noise(B, N, D), gate, noise(B, N, D), shift, scale, EPS, None, None),
        relu_linear_attention: (*noise(B, N, 3 * D).chunk(3, dim=-1), s.heads, noise(D), noise(D), EPS),
        gated_depthwise: (noise(B, N, 2 * s.hidden), noise(2 * s.hidden, 1, 3, 3), noise(2 * s.hidden), s.side, s.side),
        cross_attention: (noise(B, N, D), keys, values, bias, noise(D), EPS, prompts),
    }


def gate_error(operator: Any, args: Sequence[Any], kernel: Callable[..., Any] | None = None) -> float:
    """Relative distance of the kernel's result to the reference of the same numbers in float32; NaN is infinite."""
    kernel = kernel or launcher(operator)
    first = args[0]
    assert isinstance(first, Tensor)
    B = len(first)
    few = [a[:GATE_ROWS] if isinstance(a, Tensor) and len(a) == B > GATE_ROWS else a for a in args]
    exact = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in few]
    got, wanted = kernel(*few), operator.__wrapped__(*exact)
    pairs = [(got, wanted)] if isinstance(got, Tensor) else list(zip(got, wanted, strict=True))
    errors = [float((ours.double() - theirs.double()).norm() / theirs.double().norm()) for ours, theirs in pairs]
    return max(error if error == error else float("inf") for error in errors)


def milliseconds(call: Callable[[], object]) -> float:
    """Median of one call, the L2 cache cold."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=25, rep=100, return_mode="median"))


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 2 GiB reads and writes."""
    source = torch.randn(2**29, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3


def measure(rows: Sequence[int]) -> int:
    """Prints a line an operator and batch; returns how many were red."""
    red = 0
    ceiling = 0.0 if INTERPRETED else copy_bandwidth()
    shape = TOY if INTERPRETED else SANA
    if not INTERPRETED:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {ceiling / 1e12:.2f} TB/s")
    with torch.inference_mode():
        for B in rows:
            for operator, args in calls(shape, B).items():
                name = f"{operator.__name__:22} B {B:3}"
                error = gate_error(operator, args)
                if not error < TOLERANCE:
                    red += 1
                    print(f"{name}  RED: relative error {error:.1e}, at most {TOLERANCE:.0e} is right; not timed")
                    continue
                line = f"{name}  error {error:.1e}"
                if not INTERPRETED:
                    kernel, reference = launcher(operator), operator.__wrapped__
                    ours, theirs = (milliseconds(partial(f, *args)) for f in (kernel, reference))
                    rate = B * work(shape)[operator.__name__].moved / ours * 1e3
                    line += f"  {ours:7.3f} ms  {rate / 1e12:5.2f} TB/s = {rate / ceiling:4.0%} of a copy"
                    line += f"  reference {theirs:8.3f} ms = {theirs / ours:5.1f}x"
                print(line, flush=True)
    return red


def floors(rows: Sequence[int]) -> None:
    """Prints the table of docs/research/kernels.md: the least time is that of the bytes, operations take less."""
    for name, one in work(SANA).items():
        for B in rows:
            times = " | ".join(f"{1e6 * B * one.moved / rate:,.0f}" for rate in BANDWIDTHS.values())
            print(f"| `{name}` | {B} | {B * one.moved / 1e6:,.1f} | {B * one.operations / 1e9:,.1f} | {times} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, metavar="ROWS", default=[2, 64])
    parser.add_argument("--floors", action="store_true", help="print the floors alone")
    flags = parser.parse_args()
    if flags.floors:
        floors(flags.rows)
        return 0
    if not INTERPRETED and not torch.cuda.is_available():
        print("no CUDA device: --floors and TRITON_INTERPRET=1 need none", file=sys.stderr)
        return 2
    return 1 if measure([2] if INTERPRETED else flags.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
