"""From settings to a PipelineEngine: for checkpoints of any family but SANA."""

import hashlib
from collections.abc import Sequence

import torch

from bestofn.models import residency
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.flops import TERA
from bestofn.models.pipelines.generator import PipelineGenerator
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import Revision
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import ModelInfo, PipelineCall
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.engine.checker_loader import FoundChecker
from bestofn.service.engine.judge_loader import JudgeCheckpoint
from bestofn.service.engine.judge_residency import hold_judges
from bestofn.service.engine.loader import MAX_ENLARGEMENT, known_words
from bestofn.service.engine.pipeline_engine import PipelineEngine
from bestofn.service.media.provenance import Signer


def load_pipeline_engine(
    checkpoint: Checkpoint,
    judges: Sequence[JudgeCheckpoint],
    checker: FoundChecker | None,
    settings: Settings,
    device: torch.device,
    signer: Signer | None = None,
) -> PipelineEngine:
    """Makes the engine of a checkpoint of any family, its weights read from disk, ready to draw.

    Raises:
        SetupError: a setting is one of SANA only.
        ModelError, JudgeFolderError: a checkpoint is not as needed.
        MemoryError: one image of the model's own size does not fit into memory.
    """
    for name, value in (("BESTOFN_LORA", settings.lora), ("BESTOFN_FP8_DRAFTS", settings.fp8_drafts)):
        if value:
            raise SetupError(f"{name} is for SANA only, and {checkpoint.name} is of another family: leave it out")
    weights = sum(judge.weight_bytes(device) for judge in judges)
    weights += 0 if checker is None else checker.weight_bytes(device)
    budget = max(1, int(residency.WEIGHTS_SHARE * residency.memory_bytes(device)) - weights)
    generator = PipelineGenerator(checkpoint, device, budget)
    info = pipeline_info(generator, settings.max_size)
    sizes = sizes_for(device.type, settings.slots, settings.reproducible, tflops=info.tflops_per_forward)
    residence, judged_by, tokenizers = hold_judges(judges, checker, settings, device, generator, shared=True)
    files = [generator.tokenizer.json, *tokenizers]
    engine = PipelineEngine(generator, residence, info, judged_by, files, sizes, signer)
    engine.warm_up()
    return engine


def pipeline_info(generator: PipelineGenerator, max_size: int) -> ModelInfo:
    """The info of a pipeline for the API."""
    defaults, family = generator.defaults, generator.family
    flops = generator.flops(defaults.width, defaults.height)
    tokenizer = generator.tokenizer.json
    return ModelInfo(
        revision=Revision(name=generator.checkpoint.name, revision=generator.checkpoint.revision),
        width=defaults.width,
        height=defaults.height,
        max_size=min(max_size, MAX_ENLARGEMENT * max(defaults.width, defaults.height)),
        size_multiple=defaults.size_multiple,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        token_limit=defaults.token_limit,
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        known_words=known_words(tokenizer),
        tflops_per_forward=flops.forward / TERA,
        tflops_per_decode=flops.decode / TERA,
        guidance_embeds=not family.reads_negative,
        pipeline=PipelineCall(
            name=family.name,
            dtype=str(generator.dtype).removeprefix("torch."),
            guidance=family.guidance,
            reads_negative=family.reads_negative,
            arguments=family.constants,
        ),
    )
