"""CAME in 8 and in 32 bits: the published equations, state that survives a restart, groups, closures."""

import copy
import io

import pytest
import torch
from torch import nn

from bestofn.kernels.blockwise_quant import dequantise
from bestofn.training.optimizers.came8bit import CAME


def published_step(p, state, lr, weight_decay, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip=1.0):
    """Algorithm 2 of arXiv 2307.02047 as its authors' code has it, on a matrix or a vector."""

    def factored(prefix, square, beta):
        row, column = (state.setdefault(prefix + axis, torch.zeros(square.shape[i])) for i, axis in enumerate("rc"))
        row.mul_(beta).add_(square.mean(1), alpha=1 - beta)
        column.mul_(beta).add_(square.mean(0), alpha=1 - beta)
        return (row / row.mean()).rsqrt()[:, None] * column.rsqrt()[None]

    grad = p.grad
    square = grad**2 + eps[0]
    if p.ndim == 2:
        update = factored("v", square, betas[1]) * grad
    else:
        second = state.setdefault("v", torch.zeros_like(p))
        update = second.mul_(betas[1]).add_(square, alpha=1 - betas[1]).rsqrt() * grad
    update /= (update.norm() / update.numel() ** 0.5 / clip).clamp(min=1.0)
    m = state.setdefault("m", torch.zeros_like(p))
    m.mul_(betas[0]).add_(update, alpha=1 - betas[0])
    step = factored("s", (update - m) ** 2 + eps[1], betas[2]) * m if p.ndim == 2 else m
    p.data -= weight_decay * lr * p.data
    p.data -= lr * step


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 128), nn.SiLU(), nn.Linear(128, 40))


def gradients(net, step):
    x = torch.randn(32, 40, generator=torch.Generator().manual_seed(step))
    net.zero_grad()
    loss = (net(x) - x.roll(1, 1)).square().mean()
    loss.backward()
    return loss


def test_in_32_bits_it_is_the_published_optimizer():
    ours, theirs = model(), model()
    optimizer, states = CAME(ours.parameters(), lr=1e-3, weight_decay=0.1, bits=32), [{} for _ in theirs.parameters()]
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        for p, state in zip(theirs.parameters(), states, strict=True):
            published_step(p, state, 1e-3, 0.1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_a_convolution_of_one_pixel_is_a_matrix_and_another_is_not():
    torch.manual_seed(0)
    weight = torch.randn(64, 80)
    point, matrix = nn.Parameter(weight.clone()[:, :, None, None]), nn.Parameter(weight.clone())
    depthwise = nn.Parameter(torch.randn(80, 1, 3, 3))
    optimizer = CAME([point, matrix, depthwise], lr=1e-2)
    for p in (point, matrix, depthwise):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    assert torch.equal(point.flatten(1), matrix)
    assert optimizer.state[point]["codes"].shape == weight.shape
    assert optimizer.state[depthwise]["square"].shape == depthwise.shape
    assert not depthwise.isnan().any()


def test_only_large_matrices_take_8_bits():
    net = model()
    optimizer = CAME(net.parameters(), smallest=40 * 128)
    gradients(net, 0)
    optimizer.step()
    kept = [("codes" in optimizer.state[p], p.ndim) for p in net.parameters()]
    assert kept == [(True, 2), (False, 1), (True, 2), (False, 1)]
    optimizer = CAME(net.parameters(), smallest=40 * 128 + 1)
    optimizer.step()
    assert all("moment" in optimizer.state[p] for p in net.parameters())
    moments = [optimizer.state[p]["moment"] for p in net.parameters()]
    assert {m.dtype for m in moments} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_that_was_cut_off_goes_on_bit_by_bit(dtype):
    straight = model().to(dtype)
    optimizer = CAME(straight.parameters(), lr=1e-3)
    for step in range(8):
        if step == 4:
            file = io.BytesIO()
            torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
        gradients_in(straight, step, dtype)
        optimizer.step()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = model(seed=1).to(dtype)
    resumed.load_state_dict(saved["model"])
    again = CAME(resumed.parameters(), lr=5.0)
    again.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        gradients_in(resumed, step, dtype)
        again.step()
    assert again.param_groups[0]["lr"] == 1e-3
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in optimizer.state[a].items():
            assert value.dtype == again.state[b][name].dtype
            assert torch.equal(value, again.state[b][name])


def gradients_in(net, step, dtype):
    x = torch.randn(32, 40, generator=torch.Generator().manual_seed(step)).to(dtype)
    net.zero_grad()
    (net(x) - x.roll(1, 1)).square().mean().backward()


def test_groups_have_their_own_values():
    net = model()
    before = copy.deepcopy(net)
    still, moving = net[0], net[2]
    optimizer = CAME([{"params": still.parameters(), "lr": 0.0}, {"params": moving.parameters(), "bits": 32}], lr=1e-2)
    gradients(net, 0)
    optimizer.step()
    assert torch.equal(still.weight, before[0].weight)
    assert not torch.equal(moving.weight, before[2].weight)
    assert "codes" in optimizer.state[still.weight]
    assert "moment" in optimizer.state[moving.weight]


def test_a_closure_is_called_with_gradients_on():
    net = model()
    optimizer = CAME(net.parameters())
    assert optimizer.step(lambda: gradients(net, 0)).item() > 0
    assert "codes" in optimizer.state[net[0].weight]


def test_a_known_small_problem_converges_in_8_bits_as_in_32():
    """The last layer of a linear network, whose solution is a rotation of the input."""
    losses = {}
    for bits in (8, 32):
        net = model()
        optimizer = CAME(net.parameters(), lr=2e-3, bits=bits)
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, (300 - step) / 150)
            loss = gradients(net, step)
            optimizer.step()
        losses[bits] = loss.item()
    assert losses[32] < 0.1
    assert abs(losses[8] / losses[32] - 1) < 0.1


def test_a_gradient_that_is_zero_moves_nothing():
    p = nn.Parameter(torch.randn(64, 64))
    before = p.detach().clone()
    optimizer = CAME([p], lr=1.0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, before)
    assert not dequantise(optimizer.state[p]["codes"], optimizer.state[p]["scales"]).any()


@pytest.mark.parametrize("wrong", [{"bits": 4}, {"lr": -1.0}, {"betas": (0.9, 0.99)}], ids=str)
def test_came8bit_with_senseless_options_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CAME([nn.Parameter(torch.ones(2))], **wrong)
