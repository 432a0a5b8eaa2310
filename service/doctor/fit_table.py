"""Which published checkpoints fit which GPU, computed as workers share memory out.

`python -m bestofn.service.doctor.fit_table` prints the table of docs/operate/deployment.md.
"""

import sys
from collections.abc import Iterator

import torch

from bestofn.service.doctor.checkpoints import Located
from bestofn.service.doctor.findings import GIB
from bestofn.service.doctor.memory import MemoryPlan, needs, plan

CARDS = {"16 GB": 15.7, "24 GB": 23.5, "48 GB": 47.4, "80 GB": 79.1, "141 GB": 139.8}  # GiB that such cards report
SIZES = {"1,024": "1024px", "2,048": "2kpx", "4,096": "4kpx"}
MODELS = {"1.6B": "SANA1.5_1.6B", "4.8B": "SANA1.5_4.8B", "Sprint 1.6B": "Sana_Sprint_1.6B"}
JUDGE = "Efficient-Large-Model/NVILA-Lite-2B-Verifier"
MARKS = {"text_encoder": "t", "decoder": "d", "transformer": "x", "judge": "j"}


def plans() -> Iterator[tuple[str, str, str, MemoryPlan]]:
    """(model, side in pixels, card, plan) of each combination, with the published judge."""
    for model, name in MODELS.items():
        for side, marked in SIZES.items():
            located = Located(f"Efficient-Large-Model/{name}_{marked}_diffusers", None)
            needed = needs(located, [Located(JUDGE, None)], torch.device("cuda"))
            assert needed is not None, located.name
            for card, gib in CARDS.items():
                yield model, side, card, plan(needed, int(gib * GIB), "cuda")


def table() -> str:
    """Rows of one forward for which memory suffices, and a letter for each part that takes turns."""
    lines = [f"| model, px | {' | '.join(CARDS)} |", f"|---|{'---|' * len(CARDS)}"]
    cells: dict[str, list[str]] = {}
    for model, side, _, planned in plans():
        marks = "".join(f" {MARKS[part]}" for part in planned.turns)
        shown = f"{planned.rows}{marks}" if planned.fits and planned.rows else "-"
        cells.setdefault(f"{model}, {side}", []).append(shown)
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
