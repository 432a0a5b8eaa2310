"""The least time of a candidate by operations and bytes (docs/research/performance.md), and what to expect of a GPU
(docs/guide/choosing.md).

python -P tests/bench/floors.py
"""

# ruff: noqa: T201

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import torch
from diffusers import AutoencoderDC
from operators import SANA, work
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from bestofn.judge.flops import language_flops, vision_flops
from bestofn.judge.nvila import Nvila, VisionTower
from bestofn.judge.projector import Projector
from bestofn.models.flops import TERA, decode_flops, forward_flops
from bestofn.models.fused_decoder import fuse
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.random_init.checkpoint import DC_AE, SANA_LAYOUTS
from bestofn.models.random_init.judge import LLM, VISION

STEPS, ROWS_OF_A_CANDIDATE, TEXT, QUESTION = 20, 2, 300, 80
DEVICES = {"A100 80 GB": (312, 2.04), "H100": (989, 3.35), "H200": (989, 4.8)}  # TFLOP/s in bfloat16, TB/s: datasheets
PEAKS, EXPECTED = (790, 312), 0.35  # TFLOP/s in bfloat16 of H100 and A100; the share that is expected of them
REACHED = 0.8  # of the datasheet's operations, by a large matrix product


def judge_tflops(tiles: int) -> float:
    """Of one verdict of NVILA-Lite-2B."""
    with torch.device("meta"):
        tower = VisionTower(SiglipVisionModel(SiglipVisionConfig(**VISION)), -2, "cls_patch")
        projector = Projector("mlp_downsample_3x3_fix", VISION["hidden_size"], LLM["hidden_size"])
        model = Nvila(tower, projector, Qwen2ForCausalLM(Qwen2Config(**LLM)), LLM["vocab_size"], 0, 1)
    side = VISION["image_size"]
    positions = QUESTION + tiles * (model.tokens_per_tile(side) + 1)
    return (tiles * vision_flops(model, side) + language_flops(model, positions)) / TERA


def decoder_tflops(side: int) -> float:
    """Of decoding one image as a GPU does (`models/fused_decoder.py`); `side` is the latent's, in cells."""
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderDC.from_config(DC_AE)
        fuse(vae)
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, vae.config.latent_channels, side, side))
    return float(counter.get_total_flops() / TERA)


def expected() -> None:
    """The table of docs/guide/choosing.md; a job is charged the operations of diffusers."""
    for name, layout, side, forwards, tiles in (
        ("SANA-1.5 1.6B", "sana1.5-1.6b", 1024, STEPS * ROWS_OF_A_CANDIDATE, 10),
        ("SANA-1.5 4.8B", "sana1.5-4.8b", 1024, STEPS * ROWS_OF_A_CANDIDATE, 10),
        ("Sprint 1.6B, 2 steps", "sana-sprint-1.6b", 1024, 2, 10),
        ("SANA-1.5 1.6B at 512 px", "sana1.5-1.6b", 512, STEPS * ROWS_OF_A_CANDIDATE, 1),
    ):
        config = LinearDiTConfig.from_dict(SANA_LAYOUTS[layout]["transformer"])
        cells = side // 32
        denoising = forwards * forward_flops(config, cells, cells, TEXT) / TERA
        decoding, judging = decode_flops(DC_AE, cells, cells) / TERA, judge_tflops(tiles)
        total = denoising + decoding + judging
        rates = [peak / total for peak in (PEAKS[0], *(EXPECTED * peak for peak in PEAKS))]
        print(
            f"| {name} | {denoising:.1f} + {decoding:.1f} + {judging:.1f} = {total:.1f} | "
            + " | ".join(f"{rate:.0f} /s" if rate > 10 else f"{rate:.1f} /s" for rate in rates)
            + " |"
        )


def main() -> None:
    calls = dict.fromkeys(work(SANA), 1) | {"residual_norm": 2, "modulated_norm": 0}  # of a block
    block = sum(work(SANA)[name].moved * count for name, count in calls.items())
    first = work(SANA)["modulated_norm"].moved  # of a forward
    decode, judge = decoder_tflops(32), judge_tflops(1)
    published = decode_flops(DC_AE, 32, 32) / TERA
    print(f"decoder {decode:.2f} TFLOP, in diffusers {published:.2f}")
    print(f"judge {judge:.2f} TFLOP with one tile, {judge_tflops(10):.2f} with ten\n")
    print("| | TFLOP a candidate | GB of operators | " + " | ".join(DEVICES) + " |")
    for name, layout in (("1.6B", "sana1.5-1.6b"), ("4.8B", "sana1.5-4.8b")):
        config = LinearDiTConfig.from_dict(SANA_LAYOUTS[layout]["transformer"])
        forwards = STEPS * ROWS_OF_A_CANDIDATE
        tflops = forwards * forward_flops(config, 32, 32, TEXT) / TERA + decode + judge
        moved = forwards * (config.num_layers * block + first) / 1e12  # TB
        cells = []
        for rate, bandwidth in DEVICES.values():
            compute, memory = 1e3 * tflops / (REACHED * rate), 1e3 * moved / bandwidth
            cells.append(f"{compute:.0f} + {memory:.0f} ms: {1e3 / (compute + memory):.2f}/s")
        print(f"| {name} | {tflops:.1f} | {1e3 * moved:.0f} | " + " | ".join(cells) + " |")
    print()
    expected()


if __name__ == "__main__":
    main()
