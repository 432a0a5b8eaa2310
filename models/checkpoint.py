"""Checkpoints: a name becomes a local folder in diffusers layout, its revision, and its further files."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bestofn.models.errors import CheckpointError
from bestofn.models.hub import download, local_folder
from bestofn.models.instruction import COMPLEX_HUMAN_INSTRUCTION
from bestofn.models.weight_files import check_part, read_json, refused

EMBEDDED = {"shapes": Path(__file__).parent / "weights" / "shapes"}
PIPELINES = ("SanaPipeline", "SanaSprintPipeline")
QUANTISERS = ("bitsandbytes", "torchao")  # packages whose name is their quant_method
WITH_WEIGHTS = ("transformer", "text_encoder", "vae")

IMPORTANCE = "importance.json"
"""File with the importance of each layer of the transformer. It is not part of the revision: it only affects jobs that
ask for another depth, and these name the layers that they run."""

# A file above this size is identified by its size, its header and samples spread over it.
WHOLE_FILE = 64 * 2**20
SAMPLES, SAMPLE_BYTES = 64, 2**16


@dataclass(frozen=True)
class CallDefaults:
    """What a call means when the request leaves it open, in diffusers' names."""

    num_inference_steps: int = 20
    guidance_scale: float = 4.5
    max_sequence_length: int = 300
    complex_human_instruction: tuple[str, ...] = COMPLEX_HUMAN_INSTRUCTION


SPRINT_DEFAULTS = CallDefaults(num_inference_steps=2)


@dataclass(frozen=True)
class Checkpoint:
    """A SANA checkpoint on this machine.

    Attributes:
        name: as the operator gave it, without the revision.
        path: folder with ``model_index.json`` and the parts that it names.
        revision: the hub's commit, or 12 hex digits over the contents of a folder.
    """

    name: str
    path: Path
    revision: str

    @classmethod
    def resolve(cls, name: str, *, any_pipeline: bool = False) -> "Checkpoint":
        """Find a checkpoint by name.

        Args:
            name: ``shapes`` (the embedded default), a folder, or a hub name such as
                ``Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers@main``. With HF_HUB_OFFLINE set, hub names are
                looked up in the local cache only.
            any_pipeline: take a pipeline of another family than SANA too.

        Raises:
            CheckpointError: saying what was looked for and where.
        """
        folder = EMBEDDED.get(name) or local_folder(name, "checkpoint")
        if folder is not None:
            return cls(name, _checked(folder, any_pipeline), folder_revision(folder))
        path = download(name)
        return cls(name.partition("@")[0], _checked(path, any_pipeline), path.name)

    def config(self, *parts: str) -> dict[str, Any]:
        """Parse one of the checkpoint's JSON files, such as ``config("scheduler", "scheduler_config.json")``."""
        return read_json(self.path.joinpath(*parts))

    @property
    def is_sana(self) -> bool:
        """Whether slots serve it; a pipeline of diffusers serves any other family."""
        return not is_pipeline(self.path)

    @property
    def is_sprint(self) -> bool:
        """Whether this is a SANA-Sprint checkpoint: guidance is an input, a few consistency steps."""
        return bool(self.config("model_index.json")["_class_name"] == "SanaSprintPipeline")

    @property
    def compression(self) -> int:
        """Pixels per latent cell and side."""
        with refused(self.path / "vae"):
            return int(2 ** (len(self.config("vae", "config.json")["encoder_block_out_channels"]) - 1))

    @property
    def decoder_width(self) -> int:
        """Channels of the decoder's last stage, which has an image's pixels."""
        with refused(self.path / "vae"):
            return int(self.config("vae", "config.json")["decoder_block_out_channels"][0])

    def others(self) -> list[Path]:
        """Files and folders that a checkpoint with another transformer has too; no notes on this one, none hidden."""
        left_out = ("transformer", "README.md", IMPORTANCE)
        return [path for path in self.path.iterdir() if path.name not in left_out and not path.name.startswith(".")]

    def component(self, part: str) -> str:
        """Class name of a part, from ``model_index.json``."""
        return str(self.config("model_index.json")[part][1])

    def call_defaults(self) -> CallDefaults:
        """Defaults from ``bestofn.json``, where the checkpoint has one; else those of diffusers' pipeline."""
        base = SPRINT_DEFAULTS if self.is_sprint else CallDefaults()
        path = self.path / "bestofn.json"
        if not path.exists():
            return base
        given = read_json(path)
        unknown = sorted(given.keys() - vars(base).keys())
        if unknown:
            raise CheckpointError(f"{path}: unknown field {unknown[0]!r}, known are {', '.join(vars(base))}")
        merged = vars(base) | given
        lines = merged["complex_human_instruction"] or ()
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise CheckpointError(f"{path}: complex_human_instruction must be a list of lines")
        _check_calls(merged, path)
        return CallDefaults(**merged | {"complex_human_instruction": tuple(lines)})

    def block_importance(self) -> tuple[float, ...] | None:
        """Importance of each layer of the transformer; None if it is not measured.

        Raises:
            CheckpointError: the file holds something else than a number for each block.
        """
        path = self.path / IMPORTANCE
        if not path.exists():
            return None
        values: Any = read_json(path).get("block_importance")
        layers = self.config("transformer", "config.json")["num_layers"]
        numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != layers or not all(map(math.isfinite, values)):
            raise CheckpointError(
                f"{path} must hold block_importance, {layers} numbers: `bestofn models importance` measures them"
            )
        return tuple(map(float, values))


def importance_order(importance: Sequence[float]) -> list[int]:
    """Blocks from the most important to the least; of equals the earlier comes first."""
    return sorted(range(len(importance)), key=lambda block: -importance[block])


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is in diffusers layout, of another family than SANA."""
    index = folder / "model_index.json"
    return index.is_file() and read_json(index).get("_class_name") not in PIPELINES


def pipeline_parts(folder: Path) -> dict[str, bool]:
    """Parts of a pipeline of any family, and whether each has weights."""
    index = read_json(folder / "model_index.json")
    parts = [part for part, value in index.items() if isinstance(value, list) and len(value) == 2 and all(value)]
    return {part: (folder / part / "config.json").is_file() for part in parts if not part.startswith("_")}


def quantised_with(folder: Path) -> str | None:
    """How a part's weights are quantised, such as torchao, as its config.json says; None: they are plain."""
    config = read_json(folder / "config.json").get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    return None if method is None else str(method)


def absent_quantiser(folder: Path) -> str:
    """What to install for a part of a pipeline that was quantised by a package which is not here; empty: nothing."""
    for part in (part for part, weights in pipeline_parts(folder).items() if weights):
        package = quantised_with(folder / part)
        if package in QUANTISERS and find_spec(package) is None:
            return f"its {part} is quantised with {package}: pip install {package}"
    return ""


def _checked(folder: Path, any_pipeline: bool) -> Path:
    if not (folder / "model_index.json").exists():
        raise CheckpointError(f"{folder.absolute()} has no model_index.json: a folder in diffusers layout is needed")
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES and any_pipeline and isinstance(name, str):
        for part, weights in pipeline_parts(folder).items():
            if not (folder / part).is_dir():
                raise CheckpointError(f"{folder} has no {part!r}: the whole diffusers layout is needed")
            check_part(folder / part, weights)
        return folder
    if name not in PIPELINES:
        raise CheckpointError(
            f"{folder / 'model_index.json'}: pipeline {name!r} is not supported, only {' and '.join(PIPELINES)}"
        )
    for part in ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"):
        if part not in index or not (folder / part).is_dir():
            raise CheckpointError(f"{folder} has no {part!r}: the whole diffusers layout is needed")
        if not (isinstance(index[part], list) and len(index[part]) == 2):
            raise CheckpointError(
                f"{folder / 'model_index.json'}: {part} must be [library, class], got {index[part]!r}"
            )
        check_part(folder / part, weights=part in WITH_WEIGHTS)
        if part in WITH_WEIGHTS and (package := quantised_with(folder / part)) is not None:
            raise CheckpointError(f"{folder / part} is quantised with {package}: SANA is read from plain weights only")
    return folder


def _check_calls(calls: dict[str, Any], path: Path) -> None:
    for name in ("num_inference_steps", "max_sequence_length"):
        if type(calls[name]) is not int or calls[name] < 1:
            raise CheckpointError(f"{path}: {name} = {calls[name]!r}, a whole number above 0 is needed")
    guidance = calls["guidance_scale"]
    if type(guidance) not in (int, float) or not 0 <= guidance < math.inf:
        raise CheckpointError(f"{path}: guidance_scale = {guidance!r}, a finite number from 0 on is needed")


def folder_revision(folder: Path) -> str:
    """12 hex digits that change with any file of the checkpoint; hidden files, READMEs and `IMPORTANCE` do not count.

    Files above 64 MiB are sampled, so a 10 GB checkpoint takes well under a second.
    """
    digest = hashlib.sha256()
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in {".json", ".safetensors", ".model", ".txt"}]
    files = [file for file in files if file != folder / IMPORTANCE]
    for file in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE:
                digest.update(stream.read())
            else:
                for i in range(SAMPLES):
                    stream.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                    digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:12]
