"""Versions: the lock covers what the project asks for, and everything installs from it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, in the base and in every extra."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [need for need in map(Requirement, [*PROJECT["dependencies"], *extras]) if need.name != PROJECT["name"]]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_lock_has_one_version_in_range_of_everything_asked_for(python: str, platform: str) -> None:
    machine = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": platform}
    used = [pin for pin in LOCK if pin.marker is None or pin.marker.evaluate(machine)]
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in used}
    assert len(pins) == len(used), "a package has two versions"
    for need in asked():
        if need.marker is not None and not need.marker.evaluate(machine):
            continue
        version = pins.get(canonicalize_name(need.name))
        assert version is not None, f"{need.name} has no version in constraints.txt: run `make lock`"
        assert need.specifier.contains(version), f"{need} excludes {version} of constraints.txt: run `make lock`"


def test_the_lock_names_exact_releases_and_no_index() -> None:
    for pin in LOCK:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert Version(exact.version).local is None, f"{pin}: a local version is of one index alone"
        assert pin.url is None
    # Each CUDA build of torch asks for its own versions of these.
    assert not [pin.name for pin in LOCK if re.match(r"cuda-|nvidia-", pin.name)]


def test_people_ci_and_images_install_from_the_lock() -> None:
    for name, path in (("Makefile", "$(LOCK)"), (".ci/wheel", "$PWD/constraints.txt")):
        assert f"PIP_CONSTRAINT={path} PIP_BUILD_CONSTRAINT={path}" in (ROOT / name).read_text()
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert "PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt" in dockerfile
    assert re.search(r"^COPY constraints\.txt ", dockerfile, re.MULTILINE)
    assert "!constraints.txt" in (ROOT / ".dockerignore").read_text().splitlines()
    assert [file for file in ROOT.glob("[!.]*/**/constraints*.txt") if "site-packages" not in file.parts] == []
