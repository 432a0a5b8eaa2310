"""Refuses a pipeline's checkpoint in which a weight is missing or not finite.

The libraries go on with a random or an empty weight in its place, and draw black images with a NaN.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import CheckpointError
from bestofn.models.finite import check_finite


def encoders(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """The models of transformers in a checkpoint, by part; in diffusers' hands a missing weight would be a random one.

    Raises:
        CheckpointError: a weight is missing.
    """
    loaded = {}
    for part, entry in checkpoint.config("model_index.json").items():
        library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        kind: Any = getattr(transformers, str(name), None) if library == "transformers" else None
        is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if not is_model:
            continue
        folder = checkpoint.path / part
        loaded[part], report = kind.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        if report["missing_keys"]:
            raise CheckpointError(f"{folder}: no weight {sorted(report['missing_keys'])[0]!r}")
    return loaded


def check_loaded(pipe: Any, folder: Path) -> None:
    """Check that diffusers found every weight of its own models, and that the weights of all models are finite.

    diffusers leaves a missing weight on the meta device.

    Raises:
        CheckpointError: a weight is missing or not finite.
    """
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for name, value in chain(module.named_parameters(), module.named_buffers()):
                if value.is_meta:
                    raise CheckpointError(f"{folder / part}: no weight {name!r}")
            check_finite(module, folder / part)
