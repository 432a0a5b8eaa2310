"""What draws and judges for an evaluation: generator and judge, loaded once a process."""

from functools import cache

import torch

from bestofn.judge.interface import PointwiseJudge
from bestofn.models.generator import Generator
from bestofn.models.lora import Lora, listed
from bestofn.models.sampling import LoadedGenerator, load_generator
from bestofn.service.core.settings import load_settings
from bestofn.service.engine.compilation import compile_blocks, low_precision
from bestofn.service.engine.judge_loader import load_judge

BATCH = 16  # candidates of one forward


@cache
def parts(model: str, lora: str, judge: str, device: str) -> tuple[LoadedGenerator, PointwiseJudge]:
    """Generator with LoRAs and judge on a device, once a process; in fast mode on a CPU with compiled blocks."""
    there, settings = torch.device(device), load_settings()
    low = there.type == "cpu" and low_precision(settings.reproducible)
    generator = load_generator(model, there, loras=[Lora.resolve(text) for text in listed(lora)], low_precision=low)
    if low and isinstance(generator, Generator):
        torch.set_num_threads(1)  # as in the pool's processes, which find the compiled blocks in the cache
        compile_blocks(generator, settings.data_dir, [BATCH]).wait()
    return generator, load_judge(judge, there, key=settings.judge_api_key)
