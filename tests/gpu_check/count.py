"""make check-gpu: what a GPU would be asked to do, counted on a CPU with fake tensors of device "cuda" at true shapes.

    python -P tests/gpu_check/count.py                   needs a CUDA build of torch, and no GPU
    python -P tests/gpu_check/count.py --out FOLDER

Each row is one call: operators that reach the device (views and allocations are none; a fused operator counts as one),
bytes that they read and write, calls for which the host waits, and the most memory at once, weights included.
"""

# ruff: noqa: T201

import argparse
import math
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from figures import ROOT, Measured, Table, machine, save, shown, write_page

from bestofn.models.autoencoder import Decoder
from bestofn.models.fused_decoder import fuse
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.random_init.checkpoint import DC_AE, SANA_LAYOUTS
from bestofn.models.solver import solver_table
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.engine.cuda_graph import plain
from bestofn.service.engine.prompts import PromptTable
from bestofn.service.engine.scheduler import Group
from bestofn.service.engine.slot_group import SlotGroup

GIB = 2**30
HEAD = "# What a GPU would be asked to do\n\nWritten by `make check-gpu`: operators are counted on a CPU, not timed."
DEVICE = torch.device("cuda:0")
MODELS = {"1.6B": "sana1.5-1.6b", "4.8B": "sana1.5-4.8b", "Sprint": "sana-sprint-1.6b"}
SIDES = (1024, 2048, 4096)
TEXT = 300  # tokens of a prompt
SLOTS = {1024: 32, 2048: 8, 4096: 2}  # as many as have the tokens of 32 images of 1,024 px
FREE = {
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "device",
}
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"}


class Counter(TorchDispatchMode):
    """Counts operators that reach the device, their bytes, the memory in use, and calls for which the host waits."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.operators, self.bytes, self.waits = 0, 0, 0
        self.peak = self._held = 0
        self._storages: set[int] = set()
        for tensor in held:
            self._hold(tensor)

    def _hold(self, tensor: Tensor) -> None:
        """Counts the memory of a tensor until its storage is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.is_cuda and key not in self._storages:
            self._storages.add(key)
            self._held += size
            self.peak = max(self.peak, self._held)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._held -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        wrote = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in wrote:
            self._hold(tensor)
        on = {tensor.device.type for tensor in read + wrote}
        if "cuda" not in on or func.is_view or name in FREE:
            return out
        self.operators += 1
        self.bytes += sum(math.prod(tensor.shape) * tensor.element_size() for tensor in read + wrote)
        copies_home = "cpu" in on and any(tensor.is_cuda for tensor in read) and name in ("_to_copy", "copy_")
        self.waits += name in WAITS or (copies_home and not (kwargs or {}).get("non_blocking", False))
        return out


def counted(call: Callable[[], object], *held: Any) -> tuple[float, ...]:
    """Operators, GB, waits and peak GiB of a call; `held` are modules and tensors that are in memory before it."""
    kinds = (chain(one.parameters(), one.buffers()) if isinstance(one, torch.nn.Module) else [one] for one in held)
    with Counter(chain.from_iterable(kinds)) as counter:
        call()
    return counter.operators, counter.bytes / 1e9, counter.waits, counter.peak / GIB


def built(make: Callable[[], Any]) -> Any:
    """A module on the device in bfloat16; fake weights cannot be converted."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return make().requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def solver_of(name: str) -> Any:
    """A model's solver with the published number of steps, as numbers where fake tensors have none."""
    layout = SANA_LAYOUTS[MODELS[name]]
    config = LinearDiTConfig.from_dict(layout["transformer"])
    table = solver_table(layout["scheduler"], 2 if config.guidance_embeds else 20, config.timestep_scale)
    return SimpleNamespace(rows=table.rows, steps=table.steps, noise_draws=table.noise_draws)


def engine_rows(name: str, side: int, table: Any) -> Iterator[tuple[str | float, ...]]:
    """Filling the slots of a size, and one step of all of them."""
    layout = SANA_LAYOUTS[MODELS[name]]
    config = LinearDiTConfig.from_dict(layout["transformer"])
    model = built(lambda: LinearDiT(config))
    model.pack(DEVICE, torch.bfloat16)

    def output(x: Tensor, at: Any, context: PromptContext, scale: Tensor, layers: Any, *, fp8: bool) -> Tensor:
        guidance = scale * config.guidance_embeds_scale if config.guidance_embeds else None
        return model(at.input_scale * x, at.timestep, context, guidance, layers)  # type: ignore[no-any-return]

    generator: Any = SimpleNamespace(
        config=config, device=DEVICE, denoiser=model, dtypes={"transformer": torch.bfloat16}, output=output,
        latent_shape=lambda width, height: (config.in_channels, height // 32, width // 32),
        noise=lambda seed, width, height, draws: torch.randn(draws, config.in_channels, height // 32, width // 32),
    )  # fmt: skip
    steps = table.steps
    embeds = torch.randn(1, TEXT, config.caption_channels, device=DEVICE)
    contexts = [model.prompt_context(embeds, torch.ones(1, TEXT, device=DEVICE))]
    if not config.guidance_embeds:
        contexts.append(model.prompt_context(embeds, torch.ones(1, TEXT, device=DEVICE)))
    slots, sizes = SLOTS[side], sizes_for("cuda")
    prompts = PromptTable(contexts[0])
    group = SlotGroup(generator, Group(side, side), slots, sizes.rows, False, BatchPool(1), prompts, record=plain)

    def fill() -> None:
        for slot in range(slots):
            group.fill(slot, ("job", 0), slot, slot, table, 4.5, contexts)

    held = (model, *(value for value in vars(group).values() if isinstance(value, Tensor)), prompts.buffers.keys)
    rows = slots * len(contexts)
    yield f"{name}, {side} px", f"fill {slots} slots", *counted(fill, *held)
    yield f"{name}, {side} px", f"one step, {rows} rows", *counted(group.step, *held)

    def rest() -> None:
        for _ in range(steps - 1):
            group.step()

    yield f"{name}, {side} px", f"{steps - 1} more steps", *counted(rest, *held)


def decode_rows(side: int) -> Iterator[tuple[str | float, ...]]:
    """Decoding one image, as diffusers computes it and fused."""
    from diffusers import AutoencoderDC

    vae = built(lambda: AutoencoderDC.from_config(DC_AE))
    del vae.encoder
    decoder = Decoder(vae)
    latent = torch.randn(1, 32, side // 32, side // 32, device=DEVICE).to(memory_format=torch.channels_last)
    for way in ("1 image, as diffusers", "1 image"):
        yield f"decoder, {side} px", way, *counted(lambda: decoder(latent, stay=True), vae, latent)
        fuse(vae)


def measure() -> Iterator[Measured]:
    """Everything, a model and size at a time."""
    rows: list[tuple[str | float, ...]] = []
    header = ("what", "call", "operators", "GB", "waits", "peak GiB")
    notes = ["A fused operator counts as one; `waits` are calls for which the host waits for the device."]
    tables = {name: solver_of(name) for name in MODELS}
    sources = [lambda n=name, s=side: engine_rows(n, s, tables[n]) for name in MODELS for side in SIDES]
    sources += [lambda s=side: decode_rows(s) for side in SIDES]
    for source in sources:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            for row in source():
                rows.append(row)
                print(*row, flush=True)
    yield Measured([Table(header, rows)], notes=notes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "evaluation" / "results" / "bench" / "check-gpu")
    flags = parser.parse_args()
    if torch.version.cuda is None:
        parser.error(f"torch {torch.__version__} is no CUDA build: `make check-gpu` installs one")
    torch.cuda.get_device_capability = lambda device=None: (9, 0)  # type: ignore[assignment]  # as an H200 answers
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign]  # it asks for a driver
    begun = time.monotonic()
    for measured in measure():
        save(flags.out, "count", (__doc__ or "").strip(), measured, time.monotonic() - begun, machine())
        write_page(flags.out, ["count"], HEAD)
        print(shown(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
