"""The repository keeps what it says of itself: the captions, the links, the settings."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("kernels", "models", "judge", "service")


def test_every_module_has_a_caption_and_the_page_shows_it():
    spec = importlib.util.spec_from_file_location("structure", ROOT / "docs" / "structure.py")
    structure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(structure)
    bare = [str(f) for floor in FLOORS for f in (ROOT / floor).rglob("*.py") if not structure.caption(f)]
    assert not bare, f"modules without a docstring: {bare}"
    on_disk = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert on_disk == structure.page(), "run `python docs/structure.py`"


@pytest.mark.parametrize("floor", FLOORS)
def test_the_package_links_to_the_folder(floor):
    link = ROOT / "src" / "bestofn" / floor
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{floor}"


def test_only_the_settings_read_the_environment():
    reads = re.compile(r"os\.getenv|os\.environ\.get|os\.environ\[")
    allowed = {"service/core/settings.py"}
    for floor in FLOORS:
        for file in (ROOT / floor).rglob("*.py"):
            name = file.relative_to(ROOT).as_posix()
            found = reads.findall(file.read_text(encoding="utf-8"))
            assert not found or name in allowed, f"{name} reads the environment; add a field to Settings"


def test_links_in_the_pages_lead_somewhere():
    for page in [
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
        *(ROOT / "docs").rglob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
