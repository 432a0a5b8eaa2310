"""What the tables of the Triton kernels share; `test_fused.py` runs them, in processes of their own.

With TRITON_INTERPRET=1 on the CPU, in float32 and float16: Triton's interpreter computes bfloat16 as if its bits were
integers. Without it on a GPU, in bfloat16 as well.
"""

import os

import pytest
import torch

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# float32: sums in another order. The narrow types keep 11 and 8 bits: the result is rounded once, and so are, as in
# the references, the keys and queries after their norm, and the attention's weights.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3} | ({torch.bfloat16: 8e-3} if DEVICE == "cuda" else {})
EPS = 1e-5

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


def noise(*shape, dtype=torch.float32):
    """Random numbers in the middle of a buffer of NaN."""
    size, margin = torch.Size(shape).numel(), 64
    buffer = torch.full((size + 2 * margin,), torch.nan, dtype=dtype, device=DEVICE)
    middle = buffer[margin : margin + size]
    middle.copy_(torch.randn(size))
    return middle.view(shape)


def row(B, D, dtype):
    """One of the six rows that the timestep gives, in its place among them."""
    return noise(B, 6, D, dtype=dtype).chunk(6, dim=1)[2]


def wide(args):
    return [arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]


def check(kernel, reference, args):
    """Near the reference of the same numbers in float32, and every number written."""
    got, wanted = kernel(*args), reference(*wide(args))
    pairs = [(got, wanted)] if isinstance(got, torch.Tensor) else list(zip(got, wanted, strict=True))
    for ours, theirs in pairs:
        dtype = args[0].dtype
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        assert not ours.isnan().any(), "a value was not written, or read from outside of a tensor"
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < TOLERANCE[dtype]


def check_alone(kernel, args):
    """The last row of a batch has the same bits when it is computed alone."""
    B = args[0].shape[0]
    last = [arg[-1:] if isinstance(arg, torch.Tensor) and arg.shape[0] == B else arg for arg in args]
    assert torch.equal(kernel(*args)[-1:], kernel(*last))
