"""Weights that another process downloads: which of them are not whole yet."""

from pathlib import Path

from bestofn.judge.names import members, parse_name
from bestofn.models.hub import cached, is_hub_name
from bestofn.models.lora import missing
from bestofn.service.core.settings import Settings


def missing_weights(settings: Settings) -> list[str]:
    """Hub names of the settings whose weights are not whole in the local cache.

    Only an offline process waits for weights (HF_HUB_OFFLINE). Any other downloads what is missing, so the list is
    empty.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    judges = [name for each in (settings.judge, settings.second_judge) if each for _, name in members(each)]
    named = dict.fromkeys((settings.model, *judges))
    return [*(name for name in named if not _here(name)), *missing(settings.lora)] if HF_HUB_OFFLINE else []


def _here(name: str) -> bool:
    place = parse_name(name).place
    # Of an embedded one, a folder or an address an error shows when they are loaded.
    return not is_hub_name(place) or Path(place).is_dir() or cached(place) is not None
