"""Writes docker/constraints.txt: the versions, in this environment, of all that the images install.

Run it in the environment that the tests ran in: `.venv/bin/python -P docker/constraints.py`.
"""

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path(__file__).parent
EXTRAS = ("trace", "worker")
# torch is a build argument, since its version goes with an index; it pins its CUDA packages itself.
LEFT_OUT = re.compile(r"bestofn|torch|triton|cuda-.*|nvidia-.*")
HEADER = "# Written by docker/constraints.py: the versions that were tested together.\n"


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, in the base and in the extras that the images install."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def closure(wanted: list[Requirement]) -> dict[str, str]:
    """Name -> version of everything that these need, as it is installed here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(normal(need.name), extra) for need in wanted for extra in ("", *need.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        about = distribution(name)
        found[name] = about.version
        for need in map(Requirement, about.requires or []):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(normal(need.name), inner) for inner in ("", *need.extras)]
    return found


def main() -> None:
    pins = (f"{name}=={version}\n" for name, version in sorted(closure(direct()).items()))
    kept = [pin for pin in pins if not LEFT_OUT.fullmatch(pin.partition("==")[0])]
    (FOLDER / "constraints.txt").write_text(HEADER + "".join(kept))


if __name__ == "__main__":
    main()
