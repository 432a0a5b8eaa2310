"""Dispatch by device: an operator's plain-torch reference on the CPU, its Triton kernel on a GPU.

Kernels are imported when the first CUDA tensor arrives, so that everything runs where Triton is not installed.
"""

import functools
import importlib
import importlib.util
import inspect
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.flop_counter import register_flop_formula

P = ParamSpec("P")
R = TypeVar("R")

NAMESPACE = "bestofn"
OLDEST_CAPABILITY = (8, 0)  # bfloat16 matrix products and tanh.approx


def fused(
    *, fake: Callable[..., Any], flops: Callable[..., int] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a reference in ``kernels/<stem>.py`` the Triton kernel of the same name in ``kernels/fused/<stem>.py``.

    The reference runs for CPU tensors and wherever a gradient is needed. The kernel runs for CUDA tensors, as the
    custom operator ``torch.ops.bestofn.<name>``: one node for graphs, compilers and FLOP counters.

    Args:
        fake: returns empty results of the right shapes and dtypes for the reference's arguments.
        flops: returns the FLOPs for the shapes of the arguments and ``out_shape`` (see `FlopCounterMode`). None: the
            operator has no matrix products or convolutions, so it counts as zero.
    """

    def decorate(reference: Callable[P, R]) -> Callable[P, R]:
        name = reference.__name__
        operator = torch.library.custom_op(
            f"{NAMESPACE}::{name}",
            launcher(reference),
            mutates_args=(),
            device_types="cuda",
            schema=torch.library.infer_schema(reference, mutates_args=()),
        )
        operator.register_kernel("cpu", reference)
        operator.register_fake(fake)
        if flops is not None:
            register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name))(flops)

        @functools.wraps(reference)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            first = args[0]
            assert isinstance(first, Tensor)
            if first.is_cuda and not _wants_gradient(args) and (is_compiling() or _usable(first.device)):
                return operator(*args, **kwargs)  # type: ignore[no-any-return]
            return reference(*args, **kwargs)

        return call

    return decorate


def launcher(reference: Callable[P, R]) -> Callable[P, R]:
    """A reference's kernel, imported when it is called; it takes every argument, also those left to their defaults."""
    signature = inspect.signature(reference)

    @functools.wraps(reference)
    def launch(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        module = importlib.import_module(f"bestofn.kernels.fused.{reference.__module__.rpartition('.')[2]}")
        with torch.cuda.device_of(bound.args[0]):  # type: ignore[no-untyped-call]  # Triton launches on the current one
            return getattr(module, reference.__name__)(*bound.args)  # type: ignore[no-any-return]

    return launch


def _wants_gradient(args: tuple[object, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


@functools.cache
def _usable(device: torch.device) -> bool:
    """Whether kernels can be built for ``device``; if not, warns once with the reason."""
    if torch.version.hip is not None:
        lacking = "kernels are written for NVIDIA GPUs"
    elif torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        have, least = (".".join(map(str, c)) for c in (torch.cuda.get_device_capability(device), OLDEST_CAPABILITY))
        lacking = f"its compute capability is {have}, {least} is the least"
    elif (missing := missing_for_kernels()) is not None:
        lacking = missing
    else:
        return True
    warnings.warn(f"{device} computes without fused kernels: {lacking}", RuntimeWarning, stacklevel=3)
    return False


def missing_for_kernels() -> str | None:
    """What this machine misses to build kernels, with the fix; None if it has all. Triton compiles its launchers."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'triton>=3.5'"
    if not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler for its launchers: install gcc"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"Triton needs {header} for its launchers: install python3-dev, or Python's own build"
    return None
