"""Optional packages of this environment, found without importing them."""

from importlib.util import find_spec


def installed(*names: str) -> bool:
    """Whether packages are installed. Importing them would take seconds."""
    try:
        return all(map(find_spec, names))
    except ModuleNotFoundError:  # a parent package is missing
        return False


def can_draw_here() -> bool:
    """Whether the worker's packages are installed."""
    return installed("torch", "diffusers", "transformers")
