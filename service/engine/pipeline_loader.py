"""From settings to a PipelineEngine: for checkpoints of any family but SANA."""

from collections.abc import Sequence

import torch

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.pipelines.generator import PipelineGenerator
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import Revision
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import ModelInfo, PipelineCall
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.engine.checker_loader import FoundChecker
from bestofn.service.engine.judge_loader import JudgeCheckpoint
from bestofn.service.engine.judge_residency import hold_judges
from bestofn.service.engine.loader import common_info
from bestofn.service.engine.pipeline_engine import PipelineEngine
from bestofn.service.media.provenance import Signer


def load_pipeline_engine(
    checkpoint: Checkpoint,
    judges: Sequence[JudgeCheckpoint],
    checker: FoundChecker | None,
    settings: Settings,
    device: torch.device,
    budget: int,
    signer: Signer | None,
) -> PipelineEngine:
    """Makes the engine of a checkpoint of any family, its weights read from disk, ready to draw.

    Args:
        budget: bytes that the pipeline's weights may take.

    Raises:
        SetupError: a setting is one of SANA only.
        ModelError, JudgeFolderError: a checkpoint is not as needed.
        MemoryError: one image of the model's own size does not fit into memory.
    """
    for name, value in (("BESTOFN_LORA", settings.lora), ("BESTOFN_FP8_DRAFTS", settings.fp8_drafts)):
        if value:
            raise SetupError(f"{name} is for SANA only, and {checkpoint.name} is of another family: leave it out")
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
    return ModelInfo(
        revision=Revision(name=generator.checkpoint.name, revision=generator.checkpoint.revision),
        guidance_embeds=not family.reads_negative,
        pipeline=PipelineCall(
            name=family.name,
            dtype=str(generator.dtype).removeprefix("torch."),
            guidance=family.guidance,
            reads_negative=family.reads_negative,
            arguments=family.constants,
        ),
        **common_info(defaults, flops, generator.tokenizer.json, max_size),
    )
