"""A generator's folder against what its loaders take, from configs, indexes and headers; needs no torch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bestofn.models.checkpoint import PIPELINES, WITH_WEIGHTS
from bestofn.models.weight_files import read_json
from bestofn.service.doctor.findings import Finding
from bestofn.service.doctor.weights.part_files import AGAIN, TokenizerFacts, embedded_entries, guarded, weights

CLASSES = {
    "transformer": ("SanaTransformer2DModel",),
    "text_encoder": ("Gemma2Model", "Gemma2ForCausalLM"),
    "vae": ("AutoencoderDC",),
    "scheduler": ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "SCMScheduler"),
    "tokenizer": ("GemmaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
CONFIGS = {"transformer": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
REFUSED = "the worker refuses to start"


def check_generator(folder: Path) -> Iterator[Finding]:
    """Findings on a folder in diffusers layout: a failure is what a loader refuses."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    known = name in PIPELINES
    fix = "" if known else f"{REFUSED}: it draws with {' and '.join(PIPELINES)}"
    yield Finding("ok" if known else "fail", "model_index", f"pipeline {name}", fix)
    for part, classes in CLASSES.items():
        yield from _part(folder, part, index.get(part), classes)
    yield from guarded("configs", _sizes(folder))
    fix = f"{REFUSED}: the API counts tokens with it; save the tokenizer with transformers' fast class"
    yield from guarded("tokenizer", _tokenizer(folder), fix)


def _part(folder: Path, part: str, named: Any, classes: tuple[str, ...]) -> Iterator[Finding]:
    if not (folder / part).is_dir():
        yield Finding("fail", part, f"{folder / part} does not exist", AGAIN)
        return
    if not (isinstance(named, list) and len(named) == 2):
        found = f"model_index.json has {named!r} for it, [library, class] is needed"
        yield Finding("fail", part, found, REFUSED)
    elif named[1] not in classes:
        found = f"model_index.json has class {named[1]}, expected {' or '.join(classes)}"
        yield Finding("warn", part, found, "loaders read the part's own files, which may be of another model")
    if part in CONFIGS:
        yield from guarded(part, _class(folder / part / CONFIGS[part], part, classes))
    if part in WITH_WEIGHTS:
        yield from weights(folder / part)


def _class(config: Path, part: str, classes: tuple[str, ...]) -> Iterator[Finding]:
    """The class that a part's own config names, by which loaders go."""
    name = read_json(config).get("_class_name")
    if name not in classes:
        yield Finding("fail", part, f"{config.name} has class {name}, expected {' or '.join(classes)}", REFUSED)


def _sizes(folder: Path) -> Iterator[Finding]:
    """Fields of the configs that must agree with each other."""
    transformer, vae, text = (
        read_json(folder / part / "config.json") for part in ("transformer", "vae", "text_encoder")
    )
    kind = text.get("model_type")
    if kind != "gemma2":
        yield Finding("fail", "text_encoder", f"model_type {kind!r}, expected 'gemma2'", REFUSED)
    factor = vae.get("scaling_factor", 1.0)
    if type(factor) not in (int, float) or not 0 < factor < math.inf:
        yield Finding("fail", "vae", f"scaling_factor {factor!r}, a number above 0 is needed", REFUSED)
    pairs = (
        ("latent channels", transformer.get("in_channels", 32), vae.get("latent_channels", 32), "vae"),
        ("width of the text", transformer.get("caption_channels", 2304), text.get("hidden_size", 2304), "text_encoder"),
    )
    for what, wanted, have, part in pairs:
        if wanted == have:
            yield Finding("ok", "configs", f"{what}: {wanted}")
        else:
            found = f"{what}: the transformer takes {wanted}, {part} makes {have}"
            yield Finding("fail", "configs", found, f"{REFUSED}, or its first job fails: the parts are of two models")


def _tokenizer(folder: Path) -> Iterator[Finding]:
    facts = TokenizerFacts(folder / "tokenizer")
    control = len(facts.ids("", control=True))
    if control == 1:
        yield Finding("ok", "tokenizer", f"{facts.size} entries; a start token before each prompt")
    else:
        found = f'encode("") gives {control} tokens, one is expected'
        yield Finding(
            "warn", "tokenizer", found, "prompts would be encoded otherwise than in training: images get worse"
        )
    if (rows := embedded_entries(folder / "text_encoder")) < facts.size:
        found = f"{facts.size} entries, text_encoder embeds {rows}"
        yield Finding("fail", "tokenizer", found, "a prompt with a later entry fails: the two are of different models")
