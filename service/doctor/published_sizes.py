"""Sizes of the published checkpoints, to say what they will need before they are downloaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_GEMMA, _DC_AE = 2_614_341_888, 312_250_275
_OTHER_FILES = 40_000_000  # tokenizer and configurations, bytes
_SIDES = {"512px": 16, "2kpx": 64, "4kpx": 128}  # latent cells of the default size, where it is not 1,024 pixels


@dataclass(frozen=True, slots=True)
class Published:
    """Parameters of each part, the bytes that a download takes, and what a transformer's config.json says."""

    parts: Mapping[str, int]
    download: int
    transformer: Mapping[str, Any] = field(default_factory=dict)


def _sana(transformer: int, stored: int = 2, **config: Any) -> Published:
    """A SANA whose transformer has `stored` bytes a parameter; Gemma has two, DC-AE four."""
    parts = {"text_encoder": _GEMMA, "transformer": transformer, "decoder": _DC_AE}
    return Published(parts, stored * transformer + 2 * _GEMMA + 4 * _DC_AE + _OTHER_FILES, config)


_SMALL = {
    "num_attention_heads": 36,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
_NVILA = {"judge": 413_327_088 + 43_533_696 + 1_543_276_544}
_KNOWN: tuple[tuple[str, Published], ...] = (
    (r"sana1\.5_4\.8b.*diffusers", _sana(4_721_825_952, num_layers=60)),
    (r"sana1\.5_1\.6b.*diffusers", _sana(1_604_641_952)),
    (r"sana_sprint_1\.6b.*diffusers", _sana(1_610_237_472, guidance_embeds=True)),
    (r"sana_sprint_0\.6b.*diffusers", _sana(593_501_216, guidance_embeds=True, **_SMALL)),
    (r"sana_1600m.*bf16_diffusers", _sana(1_604_462_752)),
    (r"sana_1600m.*diffusers", _sana(1_604_462_752, stored=4)),
    (r"sana_600m.*diffusers", _sana(591_747_872, stored=4, **_SMALL)),
    (r"nvila-lite-2b-verifier", Published(_NVILA, 2 * _NVILA["judge"] + _OTHER_FILES)),
)


def published(name: str) -> Published | None:
    """The sizes of a published checkpoint by its hub name; None for one that is not known here."""
    for pattern, sizes in _KNOWN:
        if re.search(pattern, name, re.IGNORECASE):
            side = next((cells for mark, cells in _SIDES.items() if mark in name.lower()), 32)
            return Published(sizes.parts, sizes.download, {**sizes.transformer, "sample_size": side})
    return None
