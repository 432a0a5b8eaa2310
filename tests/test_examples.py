"""The examples, run as they stand against a server."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples"
WRITES = {
    "client.py": ["winner-1.png", "winner-2.png"],
    "async_events.py": ["a-photo-of-a-green-heart.png", "a-photo-of-three-red-circles.png"],
    "openai_sdk.py": ["openai-1.png", "openai-2.png"],
}


def test_every_example_is_run_and_in_the_index() -> None:
    examples = {path.name for path in FOLDER.iterdir()} - {"README.md", "__pycache__"}
    servers = {"score_server.py", "safety_server.py"}
    others = {"notebook.ipynb", "openai_node.mjs", "browser.html", *servers}  # tested with their own servers
    assert examples == {*WRITES, *others}
    index = (FOLDER / "README.md").read_text()
    assert [name for name in examples if f"[{name}]({name})" not in index] == []


def run(code: str, server: str, folder: Path) -> str:
    """Run Python code in a folder, as a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "BESTOFN_SERVER": f"{server}/"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", WRITES)
def test_scripts(name: str, served: Any, tmp_path: Path) -> None:
    printed = run((FOLDER / name).read_text(), served.url, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == WRITES[name]
    for path in tmp_path.iterdir():
        Image.open(path).verify()
        assert path.name in printed


def test_the_openai_package_of_npm(served: Any, tmp_path: Path) -> None:
    modules = FOLDER.parent / "tests" / "clients" / "node_modules"
    if shutil.which("node") is None or not (modules / "openai").is_dir():
        pytest.skip("needs node and npm install --prefix tests/clients --no-package-lock")
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(FOLDER / "openai_node.mjs", tmp_path)
    done = subprocess.run(
        ["node", "openai_node.mjs"],
        cwd=tmp_path,
        env={**os.environ, "BESTOFN_SERVER": f"{served.url}/"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *partial, winner, refused = done.stdout.splitlines()
    assert 1 <= len(partial) <= 2
    assert all(re.fullmatch(r"best of \d+: candidate \d+", line) for line in partial)
    assert re.fullmatch(r"winner: seed \d+, 256 tokens, openai-node.png", winner)
    assert "less than or equal to 16" in refused
    Image.open(tmp_path / "openai-node.png").verify()


def test_readme(served: Any, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (FOLDER.parent / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 6
    score, seed = run(code, served.url, tmp_path).split()
    assert 0 <= float(score) <= 1
    assert int(seed) >= 0
    Image.open(tmp_path / "best.png").verify()


def shown(cells: list[str]) -> list[object]:
    """Run the cells in one namespace; what each shows, which is the value of its last expression."""
    namespace: dict[str, Any] = {}
    values = []
    for cell in cells:
        *statements, last = ast.parse(cell).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(statements, []), "<cell>", "exec"), namespace)
        values.append(eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace))
    namespace["client"].close()
    return values


def test_notebook(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTOFN_SERVER", served.url)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((FOLDER / "notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "clear the outputs"
    generation, bracket, ranking = shown(["".join(cell["source"]) for cell in cells])

    assert generation._repr_html_().count("data:image/png;base64,") == 1
    assert ranking[0][:2] == (1, generation.seed)
    columns = bracket._repr_html_().split("<td>")[1:]
    framed = [re.findall(r"candidate (\d+),[^>]*solid #2a7", column) for column in columns]
    assert [len(winners) for winners in framed] == [8, 4, 2, 1]
    assert framed[-1] == [str(generation.best.candidate)]
    thumbnails = set(re.findall(r'src="([^"]*)"', columns[0]))
    assert len(thumbnails) == 16
    assert {httpx.get(url).headers["content-type"].partition("/")[0] for url in thumbnails} == {"image"}
