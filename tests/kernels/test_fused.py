"""The tables of `fused/`, in processes that import Triton as it is needed there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TABLES = [file for file in (Path(__file__).parent / "fused").glob("*.py") if file.stem not in ("common", "conftest")]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_table(**environment: str) -> None:
    child = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TABLES],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]


def test_in_the_interpreter():
    run_table(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu():
    run_table(CUBLAS_WORKSPACE_CONFIG=":4096:8")
