"""A process that draws candidates in one way: reads lines of "N seed", answers each with a line of JSON.

Every line is a new prompt, so that no engine gains by having read it before, and the same one for every way.

    python tests/bench/drawer.py one-by-one | together | engine | fast
"""

import contextlib
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Draw = Callable[[str, int, int], dict[str, float]]  # prompt, N and seed; seconds of stages


class Drawn(NamedTuple):
    """One run. `stages` are the engine's own seconds; `peak_bytes` are of the whole process until now."""

    seconds: float
    stages: dict[str, float]
    peak_bytes: int


class Drawer:
    """A drawing process, seen from outside."""

    def __init__(self, way: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.loaded: dict[str, Any] = self._answer()  # seconds until it was loaded, and until blocks were compiled

    def draw(self, N: int, seed: int = 0) -> Drawn:
        """Draws N candidates and waits for them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{N} {seed}\n")
        self._process.stdin.flush()
        return Drawn(**self._answer())

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the drawing process has ended with {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def drawers(*ways: str) -> Iterator[list[Drawer]]:
    """Processes that have loaded their checkpoint and draw nothing yet; only one of them draws at any time."""
    with contextlib.ExitStack() as stack:
        made = []
        for way in ways:
            made.append(Drawer(way))
            stack.callback(made[-1].close)
        yield made


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory that a process has had at once."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/{pid}/status does not tell its peak memory")


def prompts() -> Iterator[str]:
    """Different prompts of the shapes benchmark, over and over."""
    from bestofn.models.shapes.prompts import benchmark_prompts

    return itertools.cycle(dict.fromkeys(prompt.spec.prompt for prompt in benchmark_prompts()))


def _diffusers(way: str) -> Draw:
    import torch
    from diffusers import SanaPipeline

    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.generator import Generator
    from bestofn.service.host.cgroups import cores

    torch.set_num_threads(cores())
    defaults = Generator.load("shapes").defaults
    checkpoint = Checkpoint.resolve("shapes")
    pipeline = SanaPipeline.from_pretrained(checkpoint.path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    call = {
        "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
        "width": defaults.width,
        "height": defaults.height,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "max_sequence_length": defaults.max_sequence_length,
    }

    def seeds(first: int, count: int) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(first + i) for i in range(count)]

    def one_by_one(prompt: str, N: int, seed: int) -> dict[str, float]:
        for i in range(N):
            pipeline(prompt, generator=seeds(seed + i, 1), **call)
        return {}

    def together(prompt: str, N: int, seed: int) -> dict[str, float]:
        pipeline(prompt, num_images_per_prompt=N, generator=seeds(seed, N), **call)
        return {}

    return one_by_one if way == "one-by-one" else together


def _engine(reproducible: str, loaded: dict[str, Any]) -> Draw:
    from bestofn.service.core.schemas import GenerateRequest
    from bestofn.service.core.settings import load_settings
    from bestofn.service.engine.engine import Engine
    from bestofn.service.engine.loader import load_engine
    from bestofn.service.worker.local import local_spec, run_local

    settings = load_settings(model="shapes", judge="shapes", reproducible=reproducible, devices="cpu")
    begun = time.perf_counter()
    engine = load_engine(settings)
    assert isinstance(engine, Engine)
    loaded["load"] = time.perf_counter() - begun
    if engine.compilation is not None:
        engine.compilation.wait()
        loaded |= {"compile": time.perf_counter() - begun, "blocks": engine.blocks}

    def draw(prompt: str, N: int, seed: int) -> dict[str, float]:
        request = GenerateRequest.model_validate({"prompt": prompt, "num_samples": N, "seed": seed})
        usage = run_local(local_spec(request, engine, settings), engine).result.usage
        assert usage is not None
        return usage.seconds

    return draw


def main(way: str) -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        loaded: dict[str, Any] = {}
        engines = {"engine": "strict", "fast": "fast"}
        draw = _engine(engines[way], loaded) if way in engines else _diffusers(way)
        answers.write(json.dumps(loaded) + "\n")
        answers.flush()
        for prompt, line in zip(prompts(), sys.stdin, strict=False):
            N, seed = map(int, line.split())
            begun = time.perf_counter()
            stages = draw(prompt, N, seed)
            seconds = time.perf_counter() - begun
            answers.write(json.dumps({"seconds": seconds, "stages": stages, "peak_bytes": peak_bytes()}) + "\n")
            answers.flush()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(sys.argv[1])
