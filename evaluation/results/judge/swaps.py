"""How judges see swapped colours, swapped places and another shape.

`python evaluation/results/judge/swaps.py` prints a table from 200 drawn scenes of two objects, each right for its
prompt and then with one thing changed. Arguments are folders of further judges.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.models.shapes.prompts import held_out, pair
from bestofn.models.shapes.world import COLOURS, SHAPES, Image, Scene, Thing, render

SCENES, BATCH = 200, 32
JUDGES = {"before": Path(__file__).parent / "before", "shipped": EMBEDDED}


def cases() -> dict[str, list[tuple[str, Image, Image]]]:
    """Prompt, right image and changed image, by what is changed; no prompt has a held-out combination."""
    rng, found = np.random.default_rng(0), defaultdict(list)
    for seed in range(SCENES):
        prompts = None
        while prompts is None or any(map(held_out, prompts)):
            a, b, other = map(str, rng.choice(list(SHAPES), 3, replace=False))
            ca, cb = map(str, rng.choice(list(COLOURS), 2, replace=False))
            prompts = [pair(a, b, (ca, cb), relation) for relation in (None, "left of", "above")]
        size, y = float(rng.uniform(16, 24)), float(rng.uniform(28, 36))
        first, second, beneath = (16.0, y), (48.0, y), ((32.0, 16.0), (32.0, 48.0))

        def image(*things: tuple[str, str, tuple[float, float]], seed: int = seed, size: float = size) -> Image:
            return render(Scene(tuple(Thing(shape, colour, *at, size) for shape, colour, at in things), seed))

        plain, left, above = (one.prompt for one in prompts)
        right = image((a, ca, first), (b, cb, second))
        found["colours swapped"].append((plain, right, image((a, cb, first), (b, ca, second))))
        found["left and right swapped"].append((left, right, image((b, cb, first), (a, ca, second))))
        tower = image((a, ca, beneath[0]), (b, cb, beneath[1]))
        found["above and below swapped"].append((above, tower, image((b, cb, beneath[0]), (a, ca, beneath[1]))))
        found["another shape"].append((plain, right, image((a, ca, first), (other, cb, second))))
    return found


def main() -> None:
    """Print the table: how often the right scene outranks the changed one, how often the changed one is accepted."""
    folders = JUDGES | {folder: Path(folder) for folder in sys.argv[1:]}
    judges = {name: Judge.load(folder) for name, folder in folders.items()}
    rows = [["changed", *judges], ["---"] * (len(judges) + 1)]
    for changed, scenes in cases().items():
        images, prompts = [image for one in scenes for image in one[1:]], [one[0] for one in scenes for _ in range(2)]
        row = [changed]
        for judge in judges.values():
            verdicts = [
                verdict
                for start in range(0, len(images), BATCH)
                for verdict in judge.judge(images[start : start + BATCH], prompts[start : start + BATCH])
            ]
            right, wrong = np.array([verdict.margin for verdict in verdicts]).reshape(-1, 2).T
            row.append(f"{np.mean(right > wrong):.3f}, {np.mean(wrong > 0):.3f}")
        rows.append(row)
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
