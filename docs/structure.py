"""Writes docs/structure.md: the caption of every module, taken from the first sentence of its docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "service": "Queue, engine, worker, API, client, command line. The API reaches torch by no path.",
    "judge": "NVILA verifier, verdicts, bracket. Does not know `models`.",
    "models": "Linear DiT, solver, text encoder, autoencoder, checkpoints, the shapes world and training.",
    "kernels": "Operators of the transformer. Knows nothing of ours.",
}
HEAD = """# Structure

One caption a module, as its docstring has it (`python docs/structure.py` writes this page). Imports point downwards
only: `service` over `models` and `judge`, which do not know each other, over `kernels`.
"""


def caption(file: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", first)[0]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for floor, what in FLOORS.items():
        parts += [f"\n## {floor}/\n\n{what}\n", "\n| module | |\n|---|---|\n"]
        for file in sorted((ROOT / floor).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            said = caption(file)
            if file.name == "__init__.py":
                name = f"**{file.parent.relative_to(ROOT).as_posix()}/**"
            parts.append(f"| {name if name.startswith('**') else f'`{name}`'} | {said} |\n")
    return "".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "structure.md").write_text(page(), encoding="utf-8")
