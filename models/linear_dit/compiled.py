"""Compiled transformer blocks on a CPU: one graph for each number of rows serves all blocks of a model.

B rows, C latent channels, (h, w) latent grid, L text tokens. A graph takes seconds to minutes to compile. A child
process therefore fills torch's cache, once, and then a thread of the serving process reads it. Until then blocks are
eager.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestofn.models.linear_dit.blocks import Block, Norm
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import from_diffusers

CPUINFO = Path("/proc/cpuinfo")
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own setting, without a counterpart in Python
TORCHS_OWN = "torchinductor_"  # how the folder in the temporary one begins that the import of torch._dynamo sets
SPLITS = re.compile(r"[\s'\"\\]")  # what a path in the compiler's command must not have: torch does not quote it
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # by the flag in /proc/cpuinfo, the faster first


def bfloat16_unit(flags: Collection[str]) -> str | None:
    """The unit of a processor with these flags that multiplies in bfloat16; None: float32 is faster."""
    return next((unit for flag, unit in UNITS.items() if flag in flags), None)


def processor_flags() -> list[str]:
    """Flags of this machine's first processor; empty where Linux does not name them."""
    if not CPUINFO.is_file():
        return []
    lines = (line.partition(":") for line in CPUINFO.read_text(encoding="utf-8").splitlines())
    return next((value.split() for name, _, value in lines if name.strip() == "flags"), [])


def missing_for_blocks() -> str | None:
    """What this machine misses to compile blocks, with the fix; None if it has all."""
    compiler = os.environ.get("CXX", "g++")  # as torch chooses it
    if shutil.which(compiler) is None:
        fix = "name a program in CXX, or unset it" if "CXX" in os.environ else "install g++, or name another in CXX"
        return f"torch.compile needs a C++ compiler, and {compiler!r} is not found: {fix}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch.compile needs Python.h: install python3-dev"
    return None


def cache_folder(default: Path) -> Path:
    """The folder of compiled graphs: the one that the user names in the environment, else `default`."""
    named = Path(os.environ.get(CACHE) or default).absolute()
    set_by_torch = named.name.startswith(TORCHS_OWN) and named.parent == Path(tempfile.gettempdir()).absolute()
    return default.absolute() if set_by_torch else named


def reason(error: Exception) -> str:
    """One line of an error: the compiler's own, where a compiler failed."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)


class CompiledBlocks:
    """The compiled forward of a model's blocks, for the shapes that were compiled; all others run eagerly."""

    def __init__(self) -> None:
        # C++ between the operators: it releases the GIL, so that batches in threads run in parallel.
        self._call: Any = torch.compile(Block.forward, dynamic=False, options={"cpp_wrapper": True})
        self._ready: set[tuple[int, ...]] = set()

    def __call__(
        self, block: Block, x: Tensor, h: Tensor, keys: Tensor, values: Tensor, bias: Tensor, modulation: Tensor,
        following: Norm, height: int, width: int, prompts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """`Block.forward`; rows get keys and values of their own, as a compiled graph takes one number of prompts."""
        call = self._compiled if (*x.shape, height) in self._ready else Block.__call__
        return call(block, x, h, keys, values, bias, modulation, following, height, width, prompts)

    def _compiled(
        self, block: Block, x: Tensor, h: Tensor, keys: Tensor, values: Tensor, bias: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        *others, prompts = rest
        if prompts is not None:
            keys, values, bias = (t.index_select(0, prompts) for t in (keys, values, bias))
        return self._call(block, x, h, keys, values, bias, *others)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def compile(self, model: LinearDiT, rows: int, size: tuple[int, int], tokens: int) -> None:
        """Compile, or read from the cache, the graph of a batch; torch raises errors of many types.

        Args:
            rows: B.
            size: (h, w).
            tokens: L.
        """
        C, H = model.config.in_channels, model.config.num_cross_attention_heads
        K = model.config.cross_width // H
        shape = (model.config.num_layers, 1, H, tokens, K)
        keys, values = torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype)
        context = PromptContext(keys, values, torch.zeros(1, 1, 1, tokens, dtype=model.dtype)).select([0] * rows)
        guidance = torch.ones(rows) if model.config.guidance_embeds else None
        seen: list[tuple[int, ...]] = []

        def run(block: Block, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            seen.append((*x.shape, rest[-3]))
            return self._compiled(block, x, *rest)

        model(torch.randn(rows, C, *size), torch.full((rows,), 500.0), context, guidance, run=run)
        self._ready.update(seen)


class BackgroundCompilation:
    """Compiles a model's blocks while the model serves eagerly, and installs each graph when it is there.

    Attributes:
        state: which blocks serve now: "compiled", or "eager" with the reason.
    """

    def __init__(
        self, model: LinearDiT, folder: Path, cache: Path, rows: Sequence[int], size: tuple[int, int], tokens: int
    ) -> None:
        """
        Args:
            model: on the CPU, as `from_diffusers` reads it from `folder` in its dtype.
            folder: transformer folder of the checkpoint.
            cache: folder of compiled graphs, unless the environment names one.
            rows: numbers of rows, in the order in which they are compiled.
            size: (h, w) latent grid.
            tokens: L.
        """
        self._model = model
        self._rows, self._size, self._tokens = rows, size, tokens
        self.state = "eager: blocks are being compiled"
        if (missing := missing_for_blocks()) is not None:
            self.state = f"eager: {missing}"
            return
        self._cache = cache_folder(cache)
        if SPLITS.search(str(self._cache)):
            self.state = (
                f"eager: torch.compile cannot work in '{self._cache}', whose path has a space or a quote: "
                f"name another folder in {CACHE}"
            )
            return
        os.environ[CACHE] = str(self._cache)
        self._task = json.dumps(
            [str(folder), str(model.dtype).removeprefix("torch."), rows, size, tokens, torch.get_num_threads()]
        )
        self._made_for = " ".join((version("bestofn"), torch.__version__, self._task, *processor_flags()))
        self._thread = threading.Thread(target=self._run, name="compile", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until blocks are compiled, or cannot be; at most `seconds`."""
        if hasattr(self, "_thread"):
            self._thread.join(seconds)

    def _fill_cache(self) -> None:
        command = [sys.executable, "-P", "-m", "bestofn.models.linear_dit.compiled", self._task]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as child:
            assert child.stderr is not None
            lines = child.stderr.read().decode(errors="replace").strip().splitlines()
        if child.returncode:
            raise RuntimeError(lines[-1] if lines else f"the compiling process ended with {child.returncode}")

    def _run(self) -> None:
        try:
            filled = self._cache / f"{hashlib.sha256(self._made_for.encode()).hexdigest()}.filled"
            if not filled.exists():
                self._fill_cache()
                filled.touch()
            blocks = CompiledBlocks()
            for rows in self._rows:
                blocks.compile(self._model, rows, self._size, self._tokens)
                self._model.run = blocks
        except Exception as error:  # compilers and their back ends raise errors of many types
            self.state = f"eager: compiling failed: {reason(error)}"
        else:
            self.state = "compiled"


def _child(task: str) -> None:
    """Fill the cache with the graphs of a checkpoint's transformer, at a low priority."""
    # Standard input ends with the parent process.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    folder, dtype, rows, size, tokens, threads = json.loads(task)
    os.nice(10)
    torch.set_num_threads(threads)
    model, blocks = from_diffusers(Path(folder), torch.device("cpu"), getattr(torch, dtype)), CompiledBlocks()
    try:
        for count in rows:
            blocks.compile(model, count, tuple(size), tokens)
    except Exception as error:  # many types; the last line is torch's advice
        sys.exit(reason(error))


if __name__ == "__main__":
    _child(sys.argv[1])
