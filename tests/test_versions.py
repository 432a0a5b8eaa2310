"""Versions: the lock covers what the project asks for, and everything installs from it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bestofn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, in the base and in every extra."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [need for need in map(Requirement, [*PROJECT["dependencies"], *extras]) if need.name != PROJECT["name"]]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
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
    found = subprocess.run(["git", "ls-files", "*constraints*.txt"], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ([] if found.returncode else ["constraints.txt"])  # none outside of a git checkout


def stated(folder: Path) -> dict[str, list[str]]:
    """bestofn's version in each file that states it, as often as it does."""
    places = {
        "pyproject.toml": r'^version = "(.*)"$',
        "docker-compose.yml": r"bestofn-(?:api|worker):([\d.]+)",
        ".env.example": r"bestofn-(?:api|worker):([\d.]+)",
        "docker/Dockerfile": r"image\.version=([\d.]+)",
        "docker/kubernetes/kustomization.yaml": r"newTag: (.*)$",
    }
    return {name: re.findall(form, (folder / name).read_text(), re.MULTILINE) for name, form in places.items()}


def releases(folder: Path) -> list[str]:
    """The headings of CHANGELOG.md, newest first."""
    return re.findall(r"^## \[(.*?)\]", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_file_states_the_version_of_pyproject() -> None:
    found = stated(ROOT)
    assert {name: len(versions) for name, versions in found.items()} == {
        "pyproject.toml": 1,
        "docker-compose.yml": 3,
        ".env.example": 3,
        "docker/Dockerfile": 1,
        "docker/kubernetes/kustomization.yaml": 2,
    }
    assert {version for versions in found.values() for version in versions} == {PROJECT["version"]}
    assert releases(ROOT)[:2] == ["Unreleased", PROJECT["version"]]
    assert bestofn.__version__ == PROJECT["version"], "the installed package is older: run `make setup`"


def test_no_other_file_states_the_version() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("no git checkout")
    number = re.compile(rf"(?<![\d.]){re.escape(PROJECT['version'])}(?![\d.])")
    mentions = {
        name
        for name in tracked.stdout.splitlines()
        if (ROOT / name).suffix in {".md", ".py", ".toml", ".yaml", ".yml", ".example", ".js", ".html", ""}
        and (ROOT / name).is_file()
        and number.search((ROOT / name).read_text(encoding="utf-8"))
    }
    assert mentions <= {*stated(ROOT), "CHANGELOG.md"}, "state it in no further file, or in `.ci/version` too"


def test_one_command_sets_the_version_everywhere(tmp_path: Path) -> None:
    for name in (".ci/version", "CHANGELOG.md", *stated(ROOT)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = stated(tmp_path)
    for _ in range(2):
        subprocess.run([tmp_path / ".ci" / "version", "12.3.4"], check=True, capture_output=True)
    assert stated(tmp_path) == {name: ["12.3.4"] * len(versions) for name, versions in before.items()}
    assert releases(tmp_path) == ["Unreleased", "12.3.4", *releases(ROOT)[1:]]
    refused = subprocess.run([tmp_path / ".ci" / "version", "v2"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (2, "'v2' is not a version of three numbers, such as 0.2.0\n")
