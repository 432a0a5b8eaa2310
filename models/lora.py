"""LoRA: low-rank updates of the transformer, added to its weights while they are read.

The files are those of diffusers' SanaLoraLoaderMixin. For the weight W (out, in) of a module M,
`transformer.M.lora_A.weight` is A (rank, in) and `transformer.M.lora_B.weight` is B (out, rank). The weight becomes

    W + strength * alpha / rank * B A            (arXiv 2106.09685; alpha is the rank where the file names none)
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestofn.models.errors import CheckpointError
from bestofn.models.hub import cached, download, local_folder
from bestofn.models.weight_files import header

if TYPE_CHECKING:
    from torch import Tensor

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # diffusers' entry in the file's header: rank and alpha of the training
PREFIX = "transformer."
FIX = "name a LoRA of this model's transformer, as save_lora_weights of diffusers writes it"
_WEIGHT = re.compile(r"(?:transformer\.)?(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file on this machine.

    Attributes:
        name: file name without suffix, or name of the folder or repository; part of the served model's name.
        file: safetensors file in diffusers' layout.
        strength: factor of the update.
        revision: 8 hex digits over the file and the strength.
    """

    name: str
    file: Path
    strength: float
    revision: str

    @classmethod
    def resolve(cls, text: str) -> "Lora":
        """Find a LoRA by name, and download it if need be.

        Args:
            text: a file, a folder or a hub name with @revision, then ``=strength`` (1 if left out).

        Raises:
            CheckpointError: there is no such file, or the strength is no number.
        """
        name, strength = split_strength(text)
        file = local_file(name)
        if file is None:
            file = download(name, [FILE]) / FILE
            short = Path(name.partition("@")[0]).name
        else:
            short = file.stem if Path(name).expanduser().is_file() else file.absolute().parent.name
        header(file)
        digest = hashlib.sha256(f"{strength!r}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return cls(short, file, strength, digest.hexdigest()[:8])

    def updates(self) -> "dict[str, Update]":
        """Updates by the name of the weight that each belongs to. Reads the whole file.

        Raises:
            CheckpointError: there is no update, a weight is neither half of one, a half is missing, or rank or alpha
                is none.
        """
        from safetensors import safe_open

        halves: dict[str, dict[str, Tensor]] = {}
        with safe_open(self.file, framework="pt") as opened:
            facts = self._facts((opened.metadata() or {}).get(METADATA, "{}"))
            for key in opened.keys():  # noqa: SIM118
                found = _WEIGHT.fullmatch(key)
                if found is None:
                    raise CheckpointError(
                        f"{self.file}: weight {key!r} is not lora_A or lora_B of diffusers' layout; DoRA, biases and "
                        "other tools' layouts are not supported"
                    )
                halves.setdefault(found["module"], {})[found["half"]] = opened.get_tensor(key).float()
        if not halves:
            raise CheckpointError(f"{self.file} holds no weights, so that it changes no image: write or copy it again")
        return {f"{module}.weight": self._update(module, pair, facts) for module, pair in halves.items()}

    def _facts(self, text: str) -> dict[str, Any]:
        """The fields of diffusers' entry, checked as far as they are used."""
        try:
            facts: dict[str, Any] = {key.removeprefix(PREFIX): value for key, value in json.loads(text).items()}
            patterns = facts["alpha_pattern"] = dict(facts.get("alpha_pattern") or {})
            for pattern in patterns:
                re.compile(pattern)
        except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
            raise CheckpointError(f"{self.file}: {METADATA} in its header cannot be read: {error}") from error
        for alpha in (facts.get("lora_alpha", 1), *patterns.values()):
            if type(alpha) not in (int, float) or not math.isfinite(alpha):
                raise CheckpointError(f"{self.file}: alpha in its header is {alpha!r}, a finite number is needed")
        return facts

    def _update(self, module: str, pair: "dict[str, Tensor]", facts: dict[str, Any]) -> "Update":
        if len(pair) < 2:
            raise CheckpointError(f"{self.file}: {module} has lora_{next(iter(pair))} alone")
        if any(half.dim() < 2 or not half.numel() for half in pair.values()):
            shapes = " and ".join(f"lora_{name} {tuple(half.shape)}" for name, half in sorted(pair.items()))
            raise CheckpointError(f"{self.file}: {module} has {shapes}: matrices of rank 1 or more are needed")
        down, up = pair["A"].flatten(1), pair["B"].flatten(1)
        if up.shape[1] != len(down):
            raise CheckpointError(f"{self.file}: {module} has rank {len(down)} in lora_A and {up.shape[1]} in lora_B")
        patterns = [key for key in facts["alpha_pattern"] if re.fullmatch(rf"(.*\.)?({key})", module)]
        alpha = facts["alpha_pattern"][patterns[0]] if patterns else facts.get("lora_alpha", len(down))
        divisor = math.sqrt(len(down)) if facts.get("use_rslora") else len(down)
        return Update(down, up, self.strength * alpha / divisor)


@dataclass(frozen=True, slots=True)
class Update:
    """Low-rank update of one weight: `scale` times `up` (out, rank) times `down` (rank, in), all float32."""

    down: "Tensor"
    up: "Tensor"
    scale: float

    def added_to(self, weight: "Tensor") -> "Tensor":
        """The weight with the update, in float32."""
        return weight.float() + ((self.up @ self.down) * self.scale).reshape(weight.shape)


def listed(setting: str) -> list[str]:
    """The LoRAs of a comma-separated setting, each as `Lora.resolve` takes it."""
    return [text.strip() for text in setting.split(",") if text.strip()]


def revision_with(revision: str, loras: "Sequence[Lora]") -> str:
    """Revision of a checkpoint whose images some LoRAs change."""
    return "+lora-".join([revision, *(lora.revision for lora in loras)])


def local_file(name: str) -> Path | None:
    """The file that a name without strength means, or None for a hub name. Raises CheckpointError for neither."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = local_folder(name, "LoRA")
    return None if folder is None else folder / FILE


def missing(setting: str) -> list[str]:
    """Hub names of a setting's LoRAs that are not in the local cache; asks no network."""
    names = [split_strength(text)[0] for text in listed(setting)]
    return [name for name in names if local_file(name) is None and cached(name, [FILE]) is None]


def split_strength(text: str) -> tuple[str, float]:
    """Name and strength of ``name=strength``; 1 without one. Raises CheckpointError if it is no finite number."""
    name, equals, number = text.strip().partition("=")
    try:
        strength = float(number) if equals else 1.0
    except ValueError:
        strength = math.nan
    if not name or not math.isfinite(strength):
        raise CheckpointError(
            f"{text!r} is no LoRA: a file, a folder or owner/name@revision is, then =0.8 for a strength"
        )
    return name, strength


def merged(
    weights: "Iterable[tuple[str, Tensor]]", shapes: dict[str, tuple[int, ...]], loras: Sequence[Lora]
) -> "Iterator[tuple[str, Tensor]]":
    """Weights with the updates of some LoRAs, one at a time.

    Args:
        weights: names and tensors in diffusers' layout.
        shapes: shapes of all weights by name.

    Raises:
        CheckpointError: an update belongs to no weight, to a convolution over several pixels, or to another shape.
    """
    updates = [(lora, lora.updates()) for lora in loras]
    for lora, found in updates:
        for name, update in found.items():
            shape, own = shapes.get(name), (len(update.up), update.down.shape[1])
            if shape is None or len(shape) < 2 or math.prod(shape[2:]) != 1:
                raise CheckpointError(f"{lora.file}: the transformer has no matrix {name!r} to add an update to; {FIX}")
            if shape[:2] != own:
                raise CheckpointError(f"{lora.file}: the update of {name!r} is {own}, the weight is {shape[:2]}; {FIX}")
    for name, weight in weights:
        for _, found in updates:
            weight = found[name].added_to(weight) if name in found else weight
        yield name, weight
