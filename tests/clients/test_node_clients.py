"""Clients of JavaScript that people use, against a real server. They are installed by the command of package.json."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bestofn.service.api.app import create_app
from bestofn.service.core.settings import Settings

HERE = Path(__file__).parent
PACKAGES = HERE / "node_modules"
pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and PACKAGES.is_dir()),
    reason="needs node and npm install --prefix tests/clients --no-package-lock",
)


def node(script: Path, *arguments: str) -> Any:
    done = subprocess.run(["node", script, *arguments], capture_output=True, text=True, cwd=script.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai_package(served: Any) -> None:
    pictures = ["iVBOR", "iVBOR"]  # PNG
    assert node(HERE / "openai.mjs", served.url) == [pictures, "image/png", 400, "size"]


def test_ai_sdk(served: Any) -> None:
    assert node(HERE / "ai_sdk.mjs", served.url) == ["image/png", "image/png"]


def test_eventsource_package_ends_after_the_result(served: Any) -> None:
    assert node(HERE / "event_source.mjs", served.url) == ["succeeded"]


def test_generated_typescript_compiles_and_makes_a_round_trip(served: Any, tmp_path: Path) -> None:
    described, programs = tmp_path / "openapi.json", PACKAGES / ".bin"
    described.write_text(json.dumps(create_app(Settings()).openapi()))
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for file in ("generated.ts", "openapi-ts.config.mjs"):
        shutil.copy(HERE / file, tmp_path)
    for command in (
        ["openapi-typescript", "openapi.json", "--output", "types.ts"],
        ["openapi-ts"],
        ["tsc", "--module", "nodenext", "--target", "es2022", "--strict", "--skipLibCheck", "generated.ts"],
    ):
        done = subprocess.run([programs / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert node(tmp_path / "generated.js", served.url) == ["succeeded", 4, ["fake"]]
