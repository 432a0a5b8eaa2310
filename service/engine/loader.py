"""From settings to an engine: checkpoints are found, infos written, memory shared out."""

import hashlib
import json
from typing import Any

import diffusers
import torch
import transformers

from bestofn.judge.loader import JudgeFolderError
from bestofn.judge.names import JudgeNameError
from bestofn.models import residency
from bestofn.models.checkpoint import Checkpoint, importance_order
from bestofn.models.defaults import FOLDERS, Defaults, Flops, part_dtypes
from bestofn.models.errors import ModelError
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.lora import Lora, listed, revision_with
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import FP8_DRAFTS, LORA, Revision
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import ModelInfo
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.engine.checker_loader import find_checker
from bestofn.service.engine.compilation import compile_blocks, forward_rows, low_precision
from bestofn.service.engine.cuda_graph import Recorded, plain
from bestofn.service.engine.engine import Engine
from bestofn.service.engine.heat_engine import HeatEngine
from bestofn.service.engine.judge_loader import find_judge, say_licence
from bestofn.service.engine.judge_residency import hold_judges
from bestofn.service.engine.memory_share import Work, share_memory, work_of
from bestofn.service.host.cgroups import cores
from bestofn.service.media.provenance import Signer

# Sides up to this multiple of the default; beyond it images fall apart long before memory runs out.
MAX_ENLARGEMENT = 4


def load_engine(settings: Settings) -> HeatEngine:
    """Makes the engine that the settings name on the first of their devices, its weights read from disk, ready to draw.

    Raises:
        SetupError: a checkpoint or device is not as needed; the message names the fix.
    """
    place = torch.device(devices(settings)[0])
    # Bits depend on how many threads share a sum, so the number is fixed once and for all stages.
    torch.set_num_threads(settings.threads or cores())
    if place.type == "cuda":
        torch.cuda.set_device(place)  # for this thread, where streams and pinned memory are made
    # Their bars of "Loading weights" would run through the progress of jobs.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    signer = Signer.of(settings)
    try:
        say_licence(settings.model)
        checkpoint = Checkpoint.resolve(settings.model, any_pipeline=True)
        loras = [Lora.resolve(text) for text in listed(settings.lora)]
        names = [settings.judge, *([settings.second_judge] if settings.second_judge else [])]
        judges = [find_judge(name, settings.judge_max_tiles, settings.judge_api_key) for name in names]
        memory = residency.memory_bytes(place)
        checker = find_checker(settings)
        weights = sum(judge.weight_bytes(place) for judge in judges)
        weights += 0 if checker is None else checker.weight_bytes(place)
        if not checkpoint.is_sana:
            from bestofn.service.engine.pipeline_loader import load_pipeline_engine

            budget = max(1, int(residency.WEIGHTS_SHARE * memory) - weights)
            return load_pipeline_engine(checkpoint, judges, checker, settings, place, budget, signer)
        fp8 = settings.fp8_drafts
        reserved = checkpoint_work(checkpoint, place).reserved
        shared, budget = share_memory(generator_bytes(checkpoint, place, fp8), weights, memory, reserved)
        low = place.type == "cpu" and low_precision(settings.reproducible)
        generator = Generator(checkpoint, place, memory_budget=budget, fp8_drafts=fp8, loras=loras, low_precision=low)
        tokenizer = tokenizer_json(generator)
        info = model_info(generator, tokenizer, settings.max_size, fp8)
        sizes = sizes_for(
            place.type,
            settings.slots,
            settings.reproducible,
            tflops=info.tflops_per_forward,
            cores=settings.threads or cores(),
        )
        if sizes.parallel > 1:
            torch.set_num_threads(1)
        residence, judged_by, judge_tokenizers = hold_judges(judges, checker, settings, place, generator, shared=shared)
        tokenizers = [tokenizer, *judge_tokenizers]
        record = Recorded if settings.cuda_graphs else plain
        engine = Engine(
            generator,
            residence,
            info,
            judged_by,
            tokenizers,
            sizes,
            record=record,
            fp8_drafts=fp8,
            signer=signer,
        )
        engine.warm_up()
        if low and residence.shared and not fp8:
            rows = forward_rows(sizes.batch(sizes.rows, info.tflops_per_forward))
            engine.compilation = compile_blocks(generator, settings.data_dir, rows)
    except MemoryError as error:
        raise SetupError(
            f"{place} has too little free memory to draw one image of the model's own size: {error}"
        ) from error
    except (ModelError, JudgeFolderError, JudgeNameError) as error:
        raise SetupError(str(error)) from error
    return engine


def devices(settings: Settings) -> list[str]:
    """The devices that the settings name: "cuda" is every CUDA device; "all" too, or the CPU where there is none.

    Raises:
        SetupError: a device that this machine does not have.
    """
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if settings.devices == "all":
        return gpus or ["cpu"]
    named = [name.strip() for name in settings.devices.split(",") if name.strip()]
    if "cuda" in named and not gpus:
        raise SetupError(
            "devices: cuda asks for a GPU, and torch sees none here. Check that nvidia-smi sees one and that a "
            "container is given it, or set BESTOFN_DEVICES=cpu"
        )
    known = {"cpu", *gpus}
    named = list(dict.fromkeys(one for name in named for one in (gpus if name == "cuda" else [name])))
    unknown = [name for name in named if name not in known]
    if unknown or not named:
        raise SetupError(
            f"devices: {', '.join(unknown) or 'none'} not found; this machine has {', '.join(sorted(known))}"
        )
    return named


def generator_bytes(checkpoint: Checkpoint, device: torch.device, fp8_drafts: bool = False) -> dict[str, int]:
    """Bytes of each part's weights in its compute dtype, with an FP8 copy of the transformer for FP8 drafts.

    Only the headers of the files are read.
    """
    dtypes = part_dtypes(device, residency.stored_dtype(checkpoint.path / FOLDERS["transformer"]))
    itemsizes = {part: dtypes[part].itemsize + (fp8_drafts and part == "transformer") for part in FOLDERS}
    return {part: residency.weight_bytes(checkpoint.path / folder, itemsizes[part]) for part, folder in FOLDERS.items()}


def checkpoint_work(checkpoint: Checkpoint, device: torch.device) -> Work:
    """What the work of a checkpoint takes at its own size; only its configs and headers are read."""
    config = LinearDiTConfig.from_file(checkpoint.path / "transformer" / "config.json")
    dtypes = part_dtypes(device, residency.stored_dtype(checkpoint.path / FOLDERS["transformer"]))
    return work_of(
        config,
        checkpoint.compression,
        checkpoint.decoder_width,
        checkpoint.call_defaults().max_sequence_length,
        dtypes["transformer"].itemsize,
        device.type,
    )


def tokenizer_json(generator: Generator) -> bytes:
    """The checkpoint's tokenizer.json, with which the API counts tokens.

    Raises:
        SetupError: the checkpoint has none.
    """
    path = generator.checkpoint.path / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        raise SetupError(f"{path} is missing: save the tokenizer with transformers' fast class, which writes it")
    return path.read_bytes()


def model_info(generator: Generator, tokenizer: bytes, max_size: int, fp8_drafts: bool = False) -> ModelInfo:
    """The info of a generator for the API.

    LoRAs draw other images and FP8 drafts promote other candidates, so they are part of the revision: a job's heats
    never mix both kinds. The name has the LoRAs too, so that a caller can choose among deployments of one checkpoint.
    """
    defaults, checkpoint = generator.defaults, generator.checkpoint
    flops = generator.flops(defaults.width, defaults.height)
    layers, importance = generator.config.num_layers, checkpoint.block_importance()
    return ModelInfo(
        revision=Revision(
            name=LORA.join([checkpoint.name, *(lora.name for lora in generator.loras)]),
            revision=revision_with(checkpoint.revision, generator.loras) + FP8_DRAFTS * fp8_drafts,
        ),
        depth=layers,
        guidance_embeds=generator.config.guidance_embeds,
        layer_order=None if importance is None else tuple(importance_order(importance)),
        tflops_per_layer=(flops.forward - generator.flops(defaults.width, defaults.height, 0).forward) / layers / TERA,
        **common_info(defaults, flops, tokenizer, max_size),
    )


def common_info(defaults: Defaults, flops: Flops, tokenizer: bytes, max_size: int) -> dict[str, Any]:
    """The fields of a `ModelInfo` that are read the same way for every generator."""
    return {
        "width": defaults.width,
        "height": defaults.height,
        "max_size": min(max_size, MAX_ENLARGEMENT * max(defaults.width, defaults.height)),
        "size_multiple": defaults.size_multiple,
        "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
        "token_limit": defaults.token_limit,
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
        "known_words": known_words(tokenizer),
        "tflops_per_forward": flops.forward / TERA,
        "tflops_per_decode": flops.decode / TERA,
    }


def known_words(tokenizer: bytes) -> tuple[str, ...] | None:
    """The vocabulary of a tokenizer of whole words; None for one that can spell any word."""
    model = json.loads(tokenizer)["model"]
    if model["type"] != "WordLevel":
        return None
    return tuple(sorted(word for word in model["vocab"] if word.isalnum()))
