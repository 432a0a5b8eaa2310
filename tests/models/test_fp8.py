"""FP8 matrix products: how far they are from exact ones, what they share, and whether drafts still rank."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bestofn.kernels.fp8 import quantize_fp8_rowwise
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.fp8 import FP8Linear, with_fp8_products
from bestofn.models.solver import StepCoefficients


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def test_rows_keep_their_greatest_number_and_three_bits_of_the_others() -> None:
    x = torch.randn(5, 32) * torch.logspace(-6, 3, 5)[:, None]  # rows of very different sizes
    x[2] = 0.0
    rows, scale = quantize_fp8_rowwise(x)
    back = rows.float() * scale
    assert torch.allclose(back.abs().amax(1), x.abs().amax(1))
    assert relative_error(back[[0, 1, 3, 4]] / scale[[0, 1, 3, 4]], x[[0, 1, 3, 4]] / scale[[0, 1, 3, 4]]) < 0.04
    assert not back[2].any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_within_the_rounding_of_its_numbers(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    x = torch.randn(2, 7, 64)
    with torch.inference_mode():
        y = FP8Linear(linear.weight, linear.bias)(x)
        assert y.shape == (2, 7, 48)
        assert y.dtype == x.dtype
        assert relative_error(y, linear(x)) < 0.06


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(Checkpoint.resolve("shapes"))


def test_the_twin_shares_all_but_the_blocks_products(generator: Generator) -> None:
    model = generator.denoiser
    twin = with_fp8_products(model)
    names = [name for name, module in twin.named_modules() if isinstance(module, FP8Linear)]
    assert len(names) == 6 * len(model.transformer_blocks)  # q with k and v, out; q, out; two of the Mix-FFN
    assert not any(isinstance(module, FP8Linear) for module in model.modules())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in twin.parameters())


class Operators(TorchDispatchMode):
    """Notes every operator that is called, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((operator, args, kwargs or {}))
        return operator(*args, **(kwargs or {}))


def test_a_block_quantises_each_input_once_and_adds_biases_within_products(generator: Generator) -> None:
    [block, *_] = with_fp8_products(generator.denoiser).transformer_blocks
    context = generator.prompt_contexts([("a photo of a red star", False)])[0]
    config = generator.config
    x, modulation = torch.randn(1, 64, config.width), torch.randn(1, 6, config.width)
    following = (*modulation[:, :2].chunk(2, dim=1), 1e-6)
    with torch.inference_mode(), Operators() as seen:
        block(x, x, context.keys[0], context.values[0], context.bias, modulation, following, 8, 8)
    products = [
        (args, kwargs) for operator, args, kwargs in seen.calls if operator is torch.ops.aten._scaled_mm.default
    ]
    quantised = [1 for operator, _, _ in seen.calls if operator is torch.ops.aten.amax.default]
    assert len(products) == len(quantised) == 6, "queries, keys and values of linear attention are one product"
    biased = sum((args[4] if len(args) > 4 else kwargs.get("bias")) is not None for args, kwargs in products)
    linears = [module for module in block.modules() if isinstance(module, FP8Linear)]
    assert biased == sum(linear.bias is not None for linear in linears) > 0


def test_a_forward_is_close_and_the_checkpoints_own_is_untouched(generator: Generator) -> None:
    context = generator.prompt_contexts([("a photo of a red star", False)])[0]
    x, guidance = torch.randn(1, *generator.latent_shape(128, 128), generator=torch.manual_seed(0)), torch.ones(1)
    at = StepCoefficients.of(generator.solver_table(4).rows[1][None, :8])
    before = generator.output(x, at, context, guidance)
    eight = generator.output(x, at, context, guidance, fp8=True)
    assert 1e-4 < relative_error(eight, before) < 0.1
    assert torch.equal(generator.output(x, at, context, guidance), before)
    generator.release("transformer")
    assert torch.equal(generator.output(x, at, context, guidance, fp8=True), eight)
