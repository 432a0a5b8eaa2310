"""From the CPU to a device without waiting for what the device still has to do."""

import torch
from torch import Tensor


def uploaded(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; to a GPU through pinned memory, in the order of the current stream."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
