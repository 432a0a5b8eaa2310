"""The processes of one training: started by torchrun, or just this one."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(hours=2)  # ranks encode data of unlike sizes before they first meet


@contextmanager
def processes() -> Iterator[torch.device]:
    """The device of this process, inside the group that torchrun started it in; without torchrun, there is no group.

    A GPU a process with NCCL where there are GPUs, else gloo on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_ranks() -> tuple[int, int]:
    """This process' number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()
