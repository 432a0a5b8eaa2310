"""What this device does at best, in this run: matrix products in 16 and 8 bits, a copy, a launch, and transfers."""

from collections.abc import Callable, Iterator

import torch
from figures import Measured, Table
from gpu_place import Place
from torch import Tensor

BLOCK = {  # of the transformer: outputs and inputs of its matrix products
    "self-attention q, k, v, out": (2240, 2240),
    "FFN in": (11200, 2240),
    "FFN out": (2240, 5600),
}
ROWS = (2, 16, 64)
TOKENS = 1024


def product_rate(place: Place, M: int, N: int, K: int) -> float:
    """TFLOP/s of an (M, K) by (K, N) matrix product in the place's dtype."""
    a, b = place.normal(M, K), place.normal(N, K)
    return 2e-12 * M * N * K / place.seconds(lambda: a @ b.T, 20)


def scaled_rate(place: Place, M: int, N: int, K: int) -> float:
    """The same of 8-bit floats with a scale a row and a column, quantising left out."""
    a, b = (place.normal(rows, K).to(torch.float8_e4m3fn) for rows in (M, N))
    ones = (torch.ones(M, 1, device=place.device), torch.ones(1, N, device=place.device))
    return 2e-12 * M * N * K / place.seconds(lambda: torch._scaled_mm(a, b.T, *ones, out_dtype=torch.bfloat16), 20)


def peak_rate(place: Place) -> float:
    """TFLOP/s of a large matrix product: the ceiling of other sections."""
    side = place.pick(8192, 128)
    return product_rate(place, side, side, side)


def copy_rate(place: Place) -> float:
    """TB/s that a copy reads and writes: the ceiling of memory."""
    source = place.normal(place.pick(2**29, 2**16), dtype=torch.float32)
    target = torch.empty_like(source)
    return 2e-12 * source.nbytes / place.seconds(lambda: target.copy_(source), 20)


def measure(place: Place) -> Iterator[Measured]:
    """Products first, in the shapes of the transformer's blocks too."""
    rows: list[tuple[str, float, str]] = []
    notes: list[str] = []
    measured = Measured([Table(("", "", "unit"), rows)], notes=notes)
    side = place.pick(8192, 128)
    rates: list[tuple[str, Callable[[Place, int, int, int], float]]] = [
        (str(place.dtype).removeprefix("torch."), product_rate),
        ("float8, a scale a row", scaled_rate),
    ]
    for name, rate in rates:
        try:
            rows.append((f"{name}, {side} cubed", rate(place, side, side, side), "TFLOP/s"))
            for what, (N, K) in BLOCK.items():
                for B in place.pick(ROWS, ROWS[:1]):
                    M = B * place.pick(TOKENS, 16)
                    N, K = place.pick((N, K), (64, 32))
                    rows.append((f"{name}, {what}, {B} rows", rate(place, M, N, K), "TFLOP/s"))
        except (RuntimeError, NotImplementedError) as error:
            notes.append(f"{name}: not on this device ({str(error).splitlines()[0]})")
        yield measured
    rows.append(("copy, read and written", copy_rate(place), "TB/s"))
    rows.append(("launch of a kernel that does next to nothing", 1e6 * _launch(place), "us"))
    for what, pinned in (("pageable", False), ("pinned", True)):
        rows.append((f"image to the host, {what}", _transfer(place, pinned), "GB/s"))
    yield measured


def _launch(place: Place) -> float:
    x: Tensor = place.normal(1)
    count = place.pick(2000, 20)

    def call() -> None:
        for _ in range(count):
            x.add_(1.0)

    return place.timed(call)[0] / count


def _transfer(place: Place, pinned: bool) -> float:
    image = torch.zeros(8, place.pick(1024, 32), place.pick(1024, 32), 3, dtype=torch.uint8, device=place.device)
    host = torch.empty(image.shape, dtype=torch.uint8, pin_memory=pinned and place.cuda)
    return image.nbytes / place.seconds(lambda: host.copy_(image, non_blocking=pinned), 20) / 1e9
