"""A section of bench-gpu imported as on a machine with a GPU: no import may begin to use CUDA, as forks need it unused.

python -P tests/gpu_check/imports.py gpu_engine
"""

import importlib
import sys
from pathlib import Path

import torch

# As the driver's library answers where a GPU is.
torch.cuda._device_count_nvml = lambda: 1
torch.cuda.is_available = lambda: True
sys.path.append(str(Path(__file__).parents[1] / "bench"))
importlib.import_module(sys.argv[1])
if torch.cuda.is_initialized():
    sys.exit(f"importing {sys.argv[1]} begins to use CUDA")
