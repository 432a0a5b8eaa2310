"""The shape of a linear DiT, read strictly from a diffusers ``config.json``."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bestofn.models.errors import CheckpointError
from bestofn.models.weight_files import read_json

CLASS_NAME = "SanaTransformer2DModel"
QK_NORM = "rms_norm_across_heads"
OPTIONAL = ("out_channels", "cross_attention_dim")  # compared with other fields; None is allowed

# What diffusers assumes for a field that config.json leaves out.
_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "dropout": 0.0,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
    "guidance_embeds": False,
    "guidance_embeds_scale": 0.1,
    "qk_norm": None,
    "timestep_scale": 1.0,
}


@dataclass(frozen=True)
class LinearDiTConfig:
    """Shape of the transformer, in the names of diffusers' ``config.json``.

    Fields that only training with dropout, or another head than the published ones, would change are checked by
    `from_dict` and not kept.
    """

    in_channels: int  # latent channels, in and out
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    num_cross_attention_heads: int
    cross_attention_head_dim: int
    caption_channels: int  # width of the text encoder
    mlp_ratio: float
    attention_bias: bool
    sample_size: int  # latent side that the model was made for
    patch_size: int
    norm_elementwise_affine: bool
    norm_eps: float
    interpolation_scale: float | None  # None: no position embedding
    guidance_embeds: bool  # the guidance scale is an input (SANA-Sprint)
    guidance_embeds_scale: float
    qk_norm: str | None
    timestep_scale: float

    @property
    def width(self) -> int:
        """D, channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def cross_width(self) -> int:
        """Channels of cross-attention's queries, keys and values."""
        return self.num_cross_attention_heads * self.cross_attention_head_dim

    @property
    def ffn_width(self) -> int:
        """F, hidden channels of the Mix-FFN after the gate."""
        return int(self.mlp_ratio * self.width)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config.json") -> "LinearDiTConfig":
        """Read a diffusers config; an unknown field, or a value that is not implemented, raises CheckpointError.

        Args:
            raw: the parsed ``config.json``; keys that begin with an underscore are diffusers' own.
            source: named in errors.
        """
        class_name = raw.get("_class_name", CLASS_NAME)
        if class_name != CLASS_NAME:
            raise CheckpointError(f"{source}: _class_name is {class_name!r}, the linear DiT needs {CLASS_NAME!r}")
        given = {name: value for name, value in raw.items() if not name.startswith("_")}
        unknown = sorted(given.keys() - _DIFFUSERS_DEFAULTS.keys())
        if unknown:
            raise CheckpointError(f"{source}: unknown field {unknown[0]!r} = {given[unknown[0]]!r}")
        full = _DIFFUSERS_DEFAULTS | given
        for name, default in _DIFFUSERS_DEFAULTS.items():
            _check_number(name, full[name], default, source)
        width = full["num_attention_heads"] * full["attention_head_dim"]
        supported: dict[str, tuple[Any, ...]] = {
            "out_channels": (None, full["in_channels"]),
            "cross_attention_dim": (width,),
            "dropout": (0, 0.0),
            "qk_norm": (None, QK_NORM),
        }
        for name, allowed in supported.items():
            if full[name] not in allowed:
                wanted = " or ".join(repr(value) for value in allowed)
                raise CheckpointError(f"{source}: {name} = {full[name]!r} is not supported, only {wanted}")
        if full["interpolation_scale"] is not None and width % 4:
            raise CheckpointError(f"{source}: interpolation_scale needs a width that is a multiple of 4, got {width}")
        return cls(**{field.name: full[field.name] for field in fields(cls)})

    @classmethod
    def from_file(cls, path: Path) -> "LinearDiTConfig":
        """Read ``config.json`` at ``path``."""
        return cls.from_dict(read_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The diffusers ``config.json`` of this shape."""
        return _DIFFUSERS_DEFAULTS | {
            "_class_name": CLASS_NAME,
            **asdict(self),
            "out_channels": self.in_channels,
            "cross_attention_dim": self.width,
        }


def _check_number(name: str, value: Any, default: Any, source: str) -> None:
    """Raise CheckpointError unless a field has the kind of number that diffusers' default has."""
    if type(default) is int and name not in OPTIONAL and (type(value) is not int or value < 1):
        raise CheckpointError(f"{source}: {name} = {value!r} is not supported, only a whole number above 0")
    if type(default) is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
        raise CheckpointError(f"{source}: {name} = {value!r} is not supported, only a finite number from 0 on")
