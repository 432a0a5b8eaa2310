"""Size of the images that a pipeline draws by default, without its weights."""

from collections.abc import Mapping
from typing import Any

import diffusers
import transformers
from accelerate import init_empty_weights

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.pipelines.family import Family

DEFAULT_SIDE = 1024


def config_of(pipe: Any) -> Mapping[str, Any]:
    """Configuration of a pipeline's transformer or U-Net; empty where it has neither."""
    config: Mapping[str, Any] = getattr(getattr(pipe, "transformer", None) or getattr(pipe, "unet", None), "config", {})
    return config


def size_of(pipe: Any, family: Family) -> tuple[int, int]:
    """Width and height that a call of the pipeline draws, in pixels."""
    sample = getattr(pipe, "default_sample_size", None) or config_of(pipe).get("sample_size")
    side = sample * getattr(pipe, "vae_scale_factor", 8) if isinstance(sample, int) else DEFAULT_SIDE
    return family.defaults.get("width") or side, family.defaults.get("height") or side


def default_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """`size_of` a pipeline whose models have no memory for weights.

    Returns:
        None where diffusers cannot make one, so that the size is known after loading only.

    Raises:
        CheckpointError: it is not a text-to-image pipeline of diffusers.
    """
    family = Family.of(checkpoint)
    diffusers.utils.logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    try:
        for part, entry in checkpoint.config("model_index.json").items():
            library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
            kind: Any = getattr(diffusers, str(name), None)
            is_model = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
            if library == "transformers" and isinstance(getattr(transformers, str(name), None), type):
                parts[part] = None  # a text encoder or a tokenizer says nothing of the size
            elif is_model:
                with init_empty_weights():
                    parts[part] = kind.from_config(kind.load_config(checkpoint.path / part))
        options = {"local_files_only": True, "trust_remote_code": False}
        return size_of(getattr(diffusers, family.name).from_pretrained(checkpoint.path, **options, **parts), family)
    except Exception:  # each library has errors of its own, and loading names the fault
        return None
