"""SANA's linear diffusion transformer: prompt context once, then one forward per step."""

from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import from_diffusers, save_diffusers, to_diffusers_state_dict

__all__ = [
    "LinearDiT",
    "LinearDiTConfig",
    "PromptContext",
    "from_diffusers",
    "save_diffusers",
    "to_diffusers_state_dict",
]
