"""Outputs and scratch of the kernels begin as NaN."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_scratch():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # torch.empty is filled with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
