"""A judge's folder against what its loader takes, from configs, indexes and headers; needs no torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bestofn.judge.layout import MODEL_TYPES, PARTS, PROJECTORS
from bestofn.judge.prompting import MEDIA_TOKENS
from bestofn.models.errors import CheckpointError
from bestofn.models.weight_files import read_json
from bestofn.service.doctor.findings import Finding, State
from bestofn.service.doctor.weights.generator_files import REFUSED
from bestofn.service.doctor.weights.part_files import AGAIN, TokenizerFacts, embedded_entries, guarded, weights

ONE_TOKEN = (MEDIA_TOKENS[0], "\n", "yes", "no")
PREPROCESSOR = ("image_mean", "image_std", "rescale_factor")


def check_judge(folder: Path) -> Iterator[Finding]:
    """Findings on a folder in VILA layout: a failure is what the loader refuses."""
    config = read_json(folder / "config.json")
    yield from _fields(config)
    for part in PARTS:
        if not (folder / part).is_dir():
            yield Finding("fail", part, f"{folder / part} does not exist", AGAIN)
            continue
        yield from weights(folder / part)
        yield from guarded(part, _part(folder / part, config))
    yield from _tokenizer(folder, config)


def _fields(config: dict[str, Any]) -> Iterator[Finding]:
    kind = config.get("model_type")
    if kind in MODEL_TYPES:
        yield Finding("ok", "config", f"model_type {kind}")
    else:
        yield Finding("fail", "config", f"model_type {kind!r}, expected {' or '.join(MODEL_TYPES)}", REFUSED)
    for name in ("mm_vision_select_layer", "mm_hidden_size"):
        if name not in config:
            yield Finding("fail", "config", f"{name} is missing", REFUSED)
    for name in ("s2", "dynamic_s2"):
        if config.get(name):
            yield Finding("fail", "config", f"{name} is set", f"{REFUSED}: images are cut in another way")
    aspect = config.get("image_aspect_ratio", "dynamic")
    if aspect not in ("dynamic", "resize"):
        yield Finding("fail", "config", f"image_aspect_ratio {aspect!r}, expected dynamic or resize", REFUSED)


def _part(folder: Path, judge: dict[str, Any]) -> Iterator[Finding]:
    config, part = read_json(folder / "config.json"), folder.name
    if part == "mm_projector":
        kind = config.get("mm_projector_type")
        known = kind in PROJECTORS
        fix = "" if known else f"{REFUSED}: {', '.join(PROJECTORS)} are supported"
        yield Finding("ok" if known else "fail", part, f"mm_projector_type {kind}", fix)
    elif part == "llm":
        if config.get("model_type") != "qwen2":
            yield Finding("fail", part, f"model_type {config.get('model_type')!r}, expected 'qwen2'", REFUSED)
        if config.get("use_sliding_window"):
            yield Finding("fail", part, "use_sliding_window is set", REFUSED)
    else:
        width, wanted = config.get("hidden_size"), judge.get("mm_hidden_size")
        if width is not None and width != wanted:
            found = f"hidden_size {width}, the judge's config.json says mm_hidden_size {wanted}"
            yield Finding("fail", part, found, f"{REFUSED}: the projector does not fit")
        preprocessor = read_json(folder / "preprocessor_config.json")
        missing = [name for name in PREPROCESSOR if name not in preprocessor]
        missing += [] if {"size", "crop_size"} & preprocessor.keys() else ["size"]
        if missing:
            yield Finding("fail", part, f"preprocessor_config.json has no {', '.join(missing)}", REFUSED)


def _tokenizer(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    llm = folder / "llm"
    try:
        facts = TokenizerFacts(llm)
    except CheckpointError as error:
        state: State = "warn" if not (llm / "tokenizer.json").exists() else "fail"
        fix = (
            "it is built from vocab.json by transformers, which may split words otherwise" if state == "warn" else AGAIN
        )
        yield Finding(state, "tokenizer", str(error), fix)
        return
    unknown = [text for text in ONE_TOKEN if not facts.knows(text)]
    for text in unknown:
        yield Finding("fail", "tokenizer", f"{text!r} is not one token of the vocabulary", REFUSED)
    if not unknown:
        yield Finding("ok", "tokenizer", f"{facts.size} entries; {', '.join(map(repr, ONE_TOKEN))} are one token each")
    yield from _template(llm, config.get("chat_template"))
    if (rows := embedded_entries(llm)) < facts.size:
        yield Finding("fail", "tokenizer", f"{facts.size} entries, llm embeds {rows}", REFUSED)


def _template(llm: Path, named: str | None) -> Iterator[Finding]:
    own = (llm / "chat_template.jinja").is_file()
    if not own and (llm / "tokenizer_config.json").is_file():
        own = bool(read_json(llm / "tokenizer_config.json").get("chat_template"))
    if named not in (None, "qwen2"):
        yield Finding("fail", "template", f"chat_template {named!r}, expected 'qwen2' or none", REFUSED)
    elif named is None and not own:
        yield Finding("fail", "template", "config.json names no chat_template and llm has none", REFUSED)
    else:
        yield Finding("ok", "template", f"chat_template {named or 'of the tokenizer'}")
