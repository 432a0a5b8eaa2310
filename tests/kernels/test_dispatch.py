"""Operators as graphs, compilers and FLOP counters see them, and what happens where there is no Triton."""

import importlib
import inspect
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bestofn.kernels.blockwise_quant import dequantise, quantise, quantised_average
from bestofn.kernels.cross_attention import cross_attention
from bestofn.kernels.dispatch import missing_for_kernels
from bestofn.kernels.fp8 import quantize_fp8_rowwise
from bestofn.kernels.gated_depthwise import gated_depthwise
from bestofn.kernels.linear_attention import relu_linear_attention
from bestofn.kernels.modulate import gated_residual, modulated_norm, residual_norm, rms_norm

B, N, D, H, K, L = 2, 6, 32, 2, 16, 5
noise = partial(torch.randn, generator=torch.Generator().manual_seed(0))
x, weight, row = noise(B, N, D), noise(D), noise(B, 1, D)
text = noise(B, H, L, K)
codes, scales = quantise(x)
# operator: arguments of a call
CALLS = {
    modulated_norm: (x, row, row, 1e-6, weight, None),
    gated_residual: (x, row, x.clone()),
    residual_norm: (x, None, x.clone(), row, row, 1e-6, None, None),
    rms_norm: (x, weight, 1e-5, weight, x.clone()),
    relu_linear_attention: (x, x.clone(), x.clone(), H, weight, weight, 1e-5),
    gated_depthwise: (x, noise(D, 1, 3, 3), weight, 2, 3),
    cross_attention: (x, text, text.clone(), torch.zeros(B, 1, 1, L), weight, 1e-5, torch.tensor([1, 0])),
    quantize_fp8_rowwise: (x.flatten(0, 1),),
    quantise: (x,),
    dequantise: (codes, scales),
    quantised_average: (x, codes, scales, 0.9),
}
operators = pytest.mark.parametrize("operator", CALLS, ids=lambda operator: operator.__name__)


def registered(operator):
    return getattr(torch.ops.bestofn, operator.__name__)


@operators
def test_the_registered_operator_is_the_reference_on_a_cpu(operator):
    got, wanted = registered(operator)(*CALLS[operator]), operator(*CALLS[operator])
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@operators
def test_schema_fake_and_traced_graph(operator):
    torch.library.opcheck(registered(operator).default, CALLS[operator])


@operators
def test_as_many_operations_as_the_reference_is_counted(operator):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as wanted:
        operator(*CALLS[operator])
    on_meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in CALLS[operator]]
    with FlopCounterMode(display=False) as got:
        registered(operator)(*on_meta)
    assert got.get_total_flops() == wanted.get_total_flops()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
heads = {"num_attention_heads": 2, "attention_head_dim": 8}
heads |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
sizes = {"cross_attention_dim": 16, "caption_channels": 8, "num_layers": 1}
model = LinearDiT(LinearDiTConfig.from_dict(heads | sizes))
with torch.inference_mode():
    context = model.prompt_context(torch.randn(1, 9, 8), torch.ones(1, 9))
    assert not model(torch.randn(1, 32, 6, 4), torch.ones(1), context).isnan().any()
assert not [name for name in sys.modules if name.startswith("bestofn.kernels.fused")]
"""


def test_a_cpu_needs_no_triton():
    subprocess.run([sys.executable, "-P", "-c", WITHOUT_TRITON], check=True)


@operators
def test_reference_and_kernel_take_the_same_arguments(operator):
    pytest.importorskip("triton", reason="Triton is not installed")
    kernel = getattr(
        importlib.import_module(operator.__module__.replace("kernels", "kernels.fused")), operator.__name__
    )
    assert [*inspect.signature(kernel).parameters] == [*inspect.signature(operator).parameters]


def test_dispatch_without_a_compiler_names_what_triton_needs(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert "C compiler" in missing_for_kernels()
    (tmp_path / "gcc").touch(mode=0o755)
    assert str(tmp_path / "Python.h") in missing_for_kernels()
    (tmp_path / "Python.h").touch()
    assert missing_for_kernels() is None
