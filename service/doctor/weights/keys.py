"""Names and shapes of a checkpoint's weights against the models that would hold them, built without memory.

Needs torch, diffusers and transformers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from transformers import AutoConfig, AutoModel, Gemma2Model, Qwen2ForCausalLM

from bestofn.judge.projector import Projector
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import file_shapes
from bestofn.models.solver import solver_table
from bestofn.models.weight_files import read_json
from bestofn.service.doctor.findings import Finding
from bestofn.service.doctor.weights.part_files import shapes

Shapes = dict[str, tuple[int, ...]]
LENIENT = ("text_encoder", "vae")  # parts whose loaders leave out what has no place
TWO_MODELS = "the worker refuses to start: config.json and weights are of two models"


def generator_keys(folder: Path) -> Iterator[Finding]:
    """Weights of transformer, text encoder and decoder, and the scheduler's table for the default number of steps."""
    yield from _found(folder / "transformer", _transformer, "")
    yield from _found(folder / "text_encoder", _text_encoder, "model.")
    yield from _found(folder / "vae", _vae, "", may_be_extra="encoder.")
    try:
        calls = Checkpoint("", folder, "").call_defaults()
        table = solver_table(read_json(folder / "scheduler" / "scheduler_config.json"), calls.num_inference_steps)
    except Exception as error:  # whatever is wrong belongs into the report
        yield _failed("scheduler", error)
    else:
        yield Finding("ok", "scheduler", f"a solver of {table.steps} steps")


def judge_keys(folder: Path) -> Iterator[Finding]:
    """Weights of vision tower, projector and language model."""
    yield from _found(folder / "llm", _llm, "model.", may_be_extra="lm_head.")
    yield from _found(folder / "vision_tower", _tower, "vision_model.")
    yield from _found(folder / "mm_projector", _projector, "")


def _found(
    folder: Path,
    build: Callable[[Path], torch.nn.Module | Shapes],
    prefix: str,
    may_be_extra: str = "\0",
) -> Iterator[Finding]:
    """Stored weights against those of a model, named without `prefix`."""
    part = folder.name
    try:
        with torch.device("meta"):
            made = build(folder)
        named = made if isinstance(made, dict) else {n: tuple(p.shape) for n, p in made.state_dict().items()}
        wanted = {name.removeprefix(prefix): shape for name, shape in named.items()}
        stored = {name.removeprefix(prefix): shape for name, shape in shapes(folder).items()}
    except Exception as error:  # whatever is wrong belongs into the report
        yield _failed(part, error)
        return
    missing = sorted(wanted.keys() - stored.keys())
    extra = [name for name in sorted(stored.keys() - wanted.keys()) if not name.startswith(may_be_extra)]
    other = [name for name in sorted(wanted.keys() & stored.keys()) if wanted[name] != stored[name]]
    if missing:
        found = f"no weight {missing[0]} of shape {wanted[missing[0]]}; {len(missing)} are missing"
        yield Finding("fail", part, found, TWO_MODELS)
    if extra:
        found = f"config.json has no place for {extra[0]} of shape {stored[extra[0]]}; {len(extra)} are left over"
        yield Finding("warn" if part in LENIENT else "fail", part, found, _effect(part))
    if other:
        name = other[0]
        found = f"{name} has shape {stored[name]}, config.json asks for {wanted[name]}; {len(other)} differ"
        yield Finding("fail", part, found, TWO_MODELS)
    if not (missing or extra or other):
        yield Finding("ok", part, f"all {len(wanted)} weights have their place")


def _effect(part: str) -> str:
    if part in LENIENT:
        return "it is not read, and images may not be those of the published model"
    return "the worker refuses to start"


def _failed(part: str, error: Exception) -> Finding:
    return Finding("fail", part, " ".join(str(error).split()) or type(error).__name__, "the worker refuses to start")


def _transformer(folder: Path) -> Shapes:
    return file_shapes(LinearDiT(LinearDiTConfig.from_file(folder / "config.json")))


def _text_encoder(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = Gemma2Model(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    return model


def _vae(folder: Path) -> Shapes:
    vae = AutoencoderDC.from_config(read_json(folder / "config.json"))
    return {name: tuple(value.shape) for name, value in vae.state_dict().items() if not name.startswith("encoder.")}


def _llm(folder: Path) -> Shapes:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    named = Qwen2ForCausalLM(config).state_dict()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(value.shape) for name, value in named.items() if name not in tied}


def _tower(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    return model


def _projector(folder: Path) -> torch.nn.Module:
    judge = read_json(folder.parent / "config.json")
    llm = read_json(folder.parent / "llm" / "config.json")
    kind = read_json(folder / "config.json").get("mm_projector_type", "")
    return Projector(kind, judge["mm_hidden_size"], llm["hidden_size"])
