"""The repository keeps what it says of itself: the captions, the links, the settings."""

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "models", "judge", "training", "evaluation", "service", "cli")


def test_every_module_has_a_caption() -> None:
    bare = [
        str(file)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not bare, f"modules without a docstring: {bare}"


def test_no_module_of_the_product_is_longer_than_320_lines() -> None:
    lengths = {
        file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if "results" not in file.parts
    }
    assert {name: lines for name, lines in lengths.items() if lines > 320} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_links_to_the_folder(package):
    link = ROOT / "src" / "bestofn" / package
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{package}"


def test_only_the_settings_read_the_environment():
    reads = re.compile(r"os\.getenv|os\.environ\.get|os\.environ\[")
    allowed = {"service/core/settings.py", "models/linear_dit/compiled.py"}  # the second two variables of torch's own
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            name = file.relative_to(ROOT).as_posix()
            found = reads.findall(file.read_text(encoding="utf-8"))
            assert not found or name in allowed, f"{name} reads the environment; add a field to Settings"
