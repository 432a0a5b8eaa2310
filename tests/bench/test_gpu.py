"""bench-gpu runs at toy sizes on a CPU, keeps what it has measured, and says so in one line where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("gpu.py")


# A forked child of a process that has asked for the devices cannot use CUDA, so no process of the bench may fork.
NO_FORKS = "import os; os.register_at_fork(before=lambda: os._exit(13))\n"


def bench(*args: object, customised: Path | None = None) -> "subprocess.CompletedProcess[str]":
    paths = [str(path) for path in (customised, os.environ.get("PYTHONPATH")) if path]
    return subprocess.run(
        [sys.executable, "-P", PROGRAM, *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def test_sections_run_at_toy_sizes(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_FORKS)
    sections = ("ceilings", "kernels", "forward", "engine", "strict", "cards")
    done = bench("--device", "cpu", "--tiny", "--out", tmp_path, *sections, customised=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in sections if name != "kernels"}
    assert [row[2] for row in measured["cards"]["tables"][0]["rows"]] == ["first", "again", "other size", "back"] * 3
    assert [row[2] for row in measured["strict"]["tables"][0]["rows"]] == [0] * 4
    assert all(table["rows"] for section in measured.values() for table in section["tables"])
    table = measured["engine"]["tables"][0]
    rates = {(row[0], row[1]): row[table["header"].index("candidates/s")] for row in table["rows"]}
    assert min(rates.values()) > 0
    assert set(rates) == {("1.6B", 32), ("1.6B", 256), ("4.8B", 32)}
    assert "## engine" in (tmp_path / "README.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = bench("--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "bench-gpu needs a CUDA device and found none; --device cpu --tiny runs its code without"
    ]
    assert not list(tmp_path.iterdir())
