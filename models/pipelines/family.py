"""A family of pipelines: what a class of diffusers takes, read from the signature of its call, without weights."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import diffusers
import torch

from bestofn.models.checkpoint import Checkpoint, pipeline_parts
from bestofn.models.errors import CheckpointError
from bestofn.models.pipelines.tasks import other_task
from bestofn.models.weight_files import read_json

NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
LIBRARIES = ("diffusers", "transformers")
OVERRIDES = ("width", "height", "num_inference_steps", "guidance_scale", "max_sequence_length")
"""Fields of a folder's bestofn.json: distilled checkpoints want other values than the signature has."""


@dataclass(frozen=True)
class Family:
    """A class of pipelines with the defaults of its call.

    Attributes:
        name: the class's name.
        defaults: parameters of its call with their defaults, those of the checkpoint's ``bestofn.json`` first.
        overridden: names that ``bestofn.json`` has.
    """

    name: str
    defaults: Mapping[str, Any]
    overridden: frozenset[str] = frozenset()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Family":
        """The family of a checkpoint.

        Raises:
            CheckpointError: diffusers has no such pipeline, its task is not text-to-image, or it draws from more than
                a prompt. Or a part of it is code that came with the checkpoint.
        """
        index = checkpoint.config("model_index.json")
        name = str(index["_class_name"])
        kind = getattr(diffusers, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
            raise CheckpointError(f"{checkpoint.path}: diffusers {diffusers.__version__} has no pipeline {name!r}")
        parameters = inspect.signature(kind.__call__).parameters
        defaults = {name: one.default for name, one in parameters.items() if name != "self"}
        if task := other_task(name, defaults):
            raise CheckpointError(
                f"{checkpoint.path}: diffusers' {name} is for {task}, and a text-to-image pipeline is needed"
            )
        if absent := [name for name in NEEDED if name not in defaults]:
            raise CheckpointError(f"{checkpoint.path}: {name} takes no {absent[0]}: a text-to-image pipeline is needed")
        more = [
            name
            for name, one in parameters.items()
            if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD and name not in ("self", "prompt")
        ]
        if more:
            raise CheckpointError(
                f"{checkpoint.path}: {name} also needs {', '.join(more)}, and a job has a prompt only"
            )
        made_of = inspect.signature(kind.__init__).parameters.values()
        needed = {one.name for one in made_of if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
        if parts := sorted(
            needed - {"self", *getattr(kind, "_optional_components", ()), *pipeline_parts(checkpoint.path)}
        ):
            raise CheckpointError(f"{checkpoint.path}: {name} needs {parts[0]}, which model_index.json has not")
        for part, value in index.items():
            library = value[0] if isinstance(value, list) and value else None
            if library and library not in LIBRARIES and not _of_diffusers(str(library)):
                raise CheckpointError(
                    f"{checkpoint.path}: {part} is of {library!r}, code that came with the checkpoint, which is not run"
                )
        family, given = cls(name, defaults), _overrides(checkpoint)
        if "guidance_scale" in given and family.guidance:
            given[family.guidance] = given.pop("guidance_scale")
        return cls(name, {**defaults, **given}, frozenset(given))

    @property
    def guidance(self) -> str | None:
        """Name of the guidance in the call; None if it has none.

        Two scales occur together: `guidance_scale` is then an input of a distilled network, `true_cfg_scale` the
        classifier-free one. The one that the defaults use is chosen.
        """
        names = [name for name in ("true_cfg_scale", "guidance_scale") if _is_number(self.defaults.get(name))]
        return next((name for name in names if self.defaults[name] > 1), names[-1] if names else None)

    @property
    def guidance_scale(self) -> float:
        """Default guidance; 1 where there is none."""
        return float(self.defaults[self.guidance]) if self.guidance else 1.0

    @property
    def reads_negative(self) -> bool:
        """Whether a negative prompt has an effect with the guidance of the call."""
        embedded = "true_cfg_scale" in self.defaults and self.guidance != "true_cfg_scale"
        return "negative_prompt" in self.defaults and self.guidance is not None and not embedded

    @property
    def num_inference_steps(self) -> int:
        return int(self.defaults["num_inference_steps"])

    @property
    def callback(self) -> str | None:
        """Name of the call that is made after each step; None: steps are reported, and cancel obeyed, at the end."""
        return next((name for name in ("callback_on_step_end", "callback") if name in self.defaults), None)

    @property
    def constants(self) -> dict[str, bool | int]:
        """Arguments that are the same in every call."""
        # Without binning the size that was asked for is drawn, as SANA does here. Captions are cleaned only where
        # further packages are installed: hosts would draw different images.
        given: dict[str, bool | int] = {"use_resolution_binning": False, "clean_caption": False}
        if "max_sequence_length" in self.overridden:
            given["max_sequence_length"] = self.defaults["max_sequence_length"]
        return {name: value for name, value in given.items() if name in self.defaults}

    def call(
        self,
        prompt: str,
        negative_prompt: str,
        seeds: Sequence[int],
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        on_step: Callable[[], None],
    ) -> dict[str, Any]:
        """Arguments of one call for all seeds, with one generator each."""
        many = "num_images_per_prompt" in self.defaults
        arguments: dict[str, Any] = {
            "prompt": prompt if many or len(seeds) == 1 else [prompt] * len(seeds),
            "num_images_per_prompt": len(seeds),
            "width": width,
            "height": height,
            "num_inference_steps": num_inference_steps,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "np",
            **self.constants,
        }
        if self.guidance is not None:
            arguments[self.guidance] = guidance_scale
        if self.reads_negative and (negative_prompt or self.guidance == "true_cfg_scale"):
            negative = negative_prompt or " "  # without one, true_cfg_scale has no effect
            arguments["negative_prompt"] = negative if isinstance(arguments["prompt"], str) else [negative] * len(seeds)

        def step_end(*state: Any) -> Any:  # the last are the tensors that a callback may replace, if it is that kind
            on_step()
            return state[-1]

        if self.callback is not None:
            arguments[self.callback] = step_end
        return {name: value for name, value in arguments.items() if name in self.defaults}


def _of_diffusers(library: str) -> bool:
    return library.isidentifier() and find_spec(f"diffusers.pipelines.{library}") is not None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _overrides(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path / "bestofn.json"
    given = read_json(path) if path.exists() else {}
    for name, value in given.items():
        if name not in OVERRIDES:
            raise CheckpointError(f"{path}: unknown field {name!r}, known are {', '.join(OVERRIDES)}")
        whole = name != "guidance_scale"
        if not _is_number(value) or value < whole or not math.isfinite(value) or (whole and type(value) is not int):
            least = "a whole number above 0" if whole else "a finite number from 0 on"
            raise CheckpointError(f"{path}: {name} = {value!r}, {least} is needed")
    return given
