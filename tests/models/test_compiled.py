"""Blocks of a small transformer compiled on this CPU: near the eager ones, from the cache, and what is missing."""

import tempfile
from pathlib import Path

import pytest
import torch

from bestofn.models.linear_dit.compiled import BackgroundCompilation, bfloat16_unit, cache_folder, missing_for_blocks
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
    by_torch = Path(tempfile.gettempdir(), "torchinductor_me")  # as diffusers' import leaves it
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(by_torch))
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
    assert compilation.state == (
        "eager: torch.compile needs a C++ compiler, and 'g++' is not found: install g++, or name another in CXX"
    )


def test_compiler_is_the_one_of_cxx_as_torch_chooses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "clang++"
    other.write_text("")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "'g++' is not found" in str(missing_for_blocks()), "torch does not look for clang++"
    monkeypatch.setenv("CXX", str(other))
    assert "C++" not in str(missing_for_blocks())
    monkeypatch.setenv("CXX", "ccache g++")
    assert str(missing_for_blocks()).endswith("'ccache g++' is not found: name a program in CXX, or unset it")


def test_folder_of_graphs_is_the_users_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torchinductor_mine"))
    assert cache_folder(tmp_path / "compiled") == tmp_path / "torchinductor_mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert cache_folder(tmp_path / "compiled") == tmp_path / "compiled"


@pytest.mark.skipif(missing_for_blocks() is not None, reason="needs a C++ compiler")
def test_folder_with_a_space_is_refused_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model, folder = from_diffusers(SHAPES, dtype=torch.bfloat16), tmp_path / "my data"
    compilation = BackgroundCompilation(model, SHAPES, folder, [2], (16, 16), 8)
    compilation.wait()
    assert compilation.state.startswith(f"eager: torch.compile cannot work in '{folder}'")
    assert compilation.state.endswith("name another folder in TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.skipif(missing_for_blocks() is not None, reason="needs a C++ compiler")
def test_failed_compilation_names_what_the_compiler_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*|*-dumpversion*) exec g++ "$@";; esac\n'
                      'echo "c++: fatal error: no room" >&2\nexit 1\n')  # fmt: skip
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = from_diffusers(SHAPES, dtype=torch.bfloat16)
    compilation = BackgroundCompilation(model, SHAPES, tmp_path / "compiled", [2], (16, 16), 8)
    compilation.wait(PATIENCE)
    if "being compiled" in compilation.state:
        pytest.skip("a busy machine leaves no time to the compiling process, whose priority is low")
    assert compilation.state == "eager: compiling failed: c++: fatal error: no room"
