"""Reads a judge from a folder in the layout of VILA checkpoints, strictly.

config.json  bestofn.json (optional)  llm/  vision_tower/  mm_projector/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM
from transformers.utils import logging

from bestofn.judge.calibration import FILE as CALIBRATION
from bestofn.judge.layout import MODEL_TYPES, PARTS
from bestofn.judge.nvila import Nvila, VisionTower
from bestofn.judge.preprocess import ImageMode
from bestofn.judge.projector import Projector
from bestofn.judge.prompting import PUBLISHED_QUESTION, Question


class JudgeFolderError(ValueError):
    """A folder that does not hold a judge this code can run; the message names the file and what does not fit."""


@dataclass(frozen=True)
class JudgeFolder:
    """Everything a judge's folder says, weights included.

    Attributes:
        model: in evaluation mode, on its device.
        question: how prompts become ids.
        image_mode: how images become tiles.
        known_words: the words of the judge's world, or None if it speaks freely.
        max_positions: the longest sequence it may read.
    """

    model: Nvila
    question: Question
    image_mode: ImageMode
    known_words: frozenset[str] | None
    max_positions: int


def load(folder: Path, device: torch.device, dtype: torch.dtype, max_tiles: int | None = None) -> JudgeFolder:
    """Loads a VILA folder.

    Args:
        folder: holds `config.json`, `llm/`, `vision_tower/`, `mm_projector/`.
        device: where the weights go.
        dtype: dtype of weights and activations; the published judge runs in float16.
        max_tiles: replaces the folder's limit of tiles an image.

    Raises:
        JudgeFolderError: a file is missing, a field has a value this code does not know, or a weight does not fit.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise JudgeFolderError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not 'vila'")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise JudgeFolderError(f"{folder} has no {', no '.join(f'{part}/' for part in missing)}: not a VILA checkpoint")
    extras = read_json(folder / "bestofn.json") if (folder / "bestofn.json").is_file() else {}
    tokenizer = _tokenizer(folder / "llm")
    words = extras.get("known_words")
    with refused(folder):
        known_words = None if words is None else frozenset(map(str, words))
        image_mode = ImageMode.read(config, read_json(folder / "vision_tower" / "preprocessor_config.json"), max_tiles)
        question = Question(tokenizer, extras.get("question", PUBLISHED_QUESTION), config.get("chat_template"))
        tower = VisionTower(
            pretrained(AutoModel, folder / "vision_tower", dtype),
            int(config["mm_vision_select_layer"]),
            config.get("mm_vision_select_feature", "cls_patch"),
        )
        llm = _llm(folder / "llm", dtype, len(tokenizer))
        projector = _projector(folder / "mm_projector", config["mm_hidden_size"], llm.config.hidden_size, dtype)
        max_positions = min(int(tokenizer.model_max_length), int(llm.config.max_position_embeddings))
    model = Nvila(tower, projector, llm, len(tokenizer), question.media_id, question.newline_id)
    return JudgeFolder(
        model=model.to(device).eval().requires_grad_(False),
        question=question,
        image_mode=image_mode,
        known_words=known_words,
        max_positions=max_positions,
    )


def revision(folder: Path) -> str:
    """12 hexadecimal digits over names and contents of the files that decide a verdict."""
    files = [folder / name for name in ("config.json", "bestofn.json") if (folder / name).is_file()]
    files += [path for part in PARTS for path in (folder / part).rglob("*") if path.is_file()]
    return _digest(folder, files)


def flat_revision(folder: Path) -> str:
    """As `revision`, of a folder of transformers without parts."""
    kinds = {".json", ".safetensors", ".jinja", ".model", ".txt"}
    return _digest(folder, [path for path in folder.iterdir() if path.suffix in kinds and path.name != CALIBRATION])


def _digest(folder: Path, files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()[:12]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        JudgeFolderError: the file is missing or holds something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JudgeFolderError(f"{path} is missing: a judge's folder has it") from None
    except (ValueError, RecursionError) as error:
        raise JudgeFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise JudgeFolderError(f"{path} must hold an object")
    return fields


def _tokenizer(folder: Path) -> Any:
    # AutoTokenizer would rebuild Qwen2's pre-tokenizer for any llm/ of type qwen2, whatever tokenizer.json says.
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    with refused(folder):
        return kind.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def refused(folder: Path) -> Iterator[None]:
    """Raise JudgeFolderError, in one line with the folder, for an error of any type that its files cause in a library.

    A field of the wrong type may be a TypeError, an AttributeError or a division by zero.
    """
    try:
        yield
    except (JudgeFolderError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, KeyError):
            reason = f"{text} is missing"
        else:
            reason = text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
        raise JudgeFolderError(f"{folder}: {reason}") from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars on the terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it would break into the program's own
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def placed(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The tensors among a processor's inputs on a device, numbers with fractions in `dtype`."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return {n: x.to(device, dtype if x.is_floating_point() else x.dtype) for n, x in tensors.items()}


def pretrained(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    """A transformers model, refused unless every weight of the folder has its place and the other way round.

    No pickle and no code of the folder's own: either could do anything as this process.
    """
    read_json(folder / "config.json")
    try:
        with without_progress_bars():
            model, report = kind.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **options
            )
    except OSError as error:
        raise ValueError(f"{folder.name}/ cannot be read: {' '.join(str(error).split())}") from error
    except ImportError as error:  # a package that quantised weights need
        raise ValueError(f"{folder.name}/ needs a package: {' '.join(str(error).split())}") from error
    wrong = {name: sorted(map(str, report[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    for name, keys in wrong.items():
        if keys:
            raise ValueError(f"{folder.name}/ has {len(keys)} {name.replace('_', ' ')}, first {keys[0]}")
    loaded: nn.Module = model
    return loaded


def _llm(folder: Path, dtype: torch.dtype, vocabulary: int) -> Any:
    read_json(folder / "config.json")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type != "qwen2":
        raise ValueError(f"llm/ is of type {config.model_type!r}, only 'qwen2' is supported")
    if config.use_sliding_window:
        raise ValueError("llm/ uses a sliding window, which is not supported")
    llm = pretrained(Qwen2ForCausalLM, folder, dtype, attn_implementation="sdpa")
    rows = llm.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if rows < vocabulary:
        raise ValueError(f"llm/ embeds {rows} tokens, but its tokenizer has {vocabulary}")
    return llm


def _projector(folder: Path, C: int, D: int, dtype: torch.dtype) -> Projector:
    projector = Projector(read_json(folder / "config.json").get("mm_projector_type", ""), C, D)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise JudgeFolderError(f"{path} is missing: the projector's weights stand there")
    try:
        projector.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"mm_projector/ does not fit {C} -> {D}: {' '.join(str(error).split())}") from error
    return projector.to(dtype)
