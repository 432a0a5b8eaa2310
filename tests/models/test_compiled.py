"""Blocks of a small transformer compiled on this CPU: near the eager ones, from the cache, and what is missing."""

from pathlib import Path

import pytest
import torch

from bestofn.models.linear_dit.compiled import BackgroundCompilation, bfloat16_unit, missing_for_blocks
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import from_diffusers
from tests.waiting import PATIENCE

SHAPES = Path(__file__).parents[2] / "models" / "weights" / "shapes" / "transformer"


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        (("avx2", "avx512f"), None),
        (("avx512f", "avx512_bf16"), "AVX512-BF16"),
        (("avx512_bf16", "amx_bf16", "amx_tile"), "AMX"),
    ],
)
def test_bfloat16_unit_is_the_fastest_of_the_flags(flags: tuple[str, ...], unit: str | None) -> None:
    assert bfloat16_unit(flags) == unit


def velocity(model: LinearDiT, rows: int) -> torch.Tensor:
    """Of noise and a random prompt."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    shape = (config.num_layers, 1, config.num_cross_attention_heads, 8, 32)
    keys, values = (torch.randn(shape, generator=generator).to(model.dtype) for _ in range(2))
    context = PromptContext(keys, values, torch.zeros(1, 1, 1, 8, dtype=model.dtype)).select([0] * rows)
    latent = torch.randn(rows, config.in_channels, 16, 16, generator=generator)
    with torch.inference_mode():
        return model(latent, torch.full((rows,), 500.0), context).float()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch.jit deprecates
@pytest.mark.skipif(missing_for_blocks() is not None, reason="needs a C++ compiler")
def test_background_compilation_serves_eagerly_first_and_stays_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = from_diffusers(SHAPES, dtype=torch.bfloat16)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torchinductor_me"))  # as diffusers' import leaves it
    eager, other = velocity(model, 2), velocity(model, 1)
    cache = tmp_path / "compiled"
    compilation = BackgroundCompilation(model, SHAPES, cache, [2], (16, 16), 8)
    assert torch.equal(velocity(model, 2), eager) or compilation.state == "compiled"
    compilation.wait(PATIENCE)
    if "being compiled" in compilation.state:
        pytest.skip("a busy machine leaves no time to the compiling process, whose priority is low")
    assert compilation.state == "compiled"
    compiled = velocity(model, 2)
    assert not torch.equal(compiled, eager)
    assert (compiled - eager).abs().mean() < 0.02 * eager.abs().mean()
    assert list(cache.rglob("*.so"))
    assert torch.equal(velocity(model, 1), other), "another number of rows is not compiled"

    monkeypatch.setattr(BackgroundCompilation, "_fill_cache", None)  # a restart finds it filled
    again = BackgroundCompilation(model, SHAPES, cache, [2], (16, 16), 8)
    again.wait(PATIENCE)
    assert again.state == "compiled"


def test_background_compilation_without_a_compiler_stays_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    model = from_diffusers(SHAPES, dtype=torch.bfloat16)
    compilation = BackgroundCompilation(model, SHAPES, tmp_path, [2], (16, 16), 8)
    compilation.wait()
    assert compilation.state == "eager: torch.compile needs a C++ compiler: install g++"
