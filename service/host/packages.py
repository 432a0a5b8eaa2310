"""Optional packages of this environment, found without importing them."""

import importlib.util


def can_draw_here() -> bool:
    """Whether the worker's packages are installed. Importing them would take seconds."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "diffusers", "transformers"))
