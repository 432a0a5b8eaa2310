"""Inference-time scaling of text-to-image as a service: draw N candidates, judge them, return the best.

>>> import bestofn
>>> with bestofn.Client("http://127.0.0.1:8000") as client:
...     generation = client.generate("a photo of a red star left of a blue circle", num_samples=32)
...     generation.image.show()
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bestofn.service.core.version import VERSION as __version__

if TYPE_CHECKING:
    from bestofn.service.client.client import AsyncClient as AsyncClient
    from bestofn.service.client.client import Client as Client
    from bestofn.service.client.generation import Generation as Generation
    from bestofn.service.client import Progress as Progress
    from bestofn.service.core.errors import BestOfNError as BestOfNError

# Loaded when they are asked for, so that `import bestofn` costs nothing.
_HOMES = {
    "AsyncClient": "bestofn.service.client",
    "BestOfNError": "bestofn.service.core.errors",
    "Client": "bestofn.service.client",
    "Generation": "bestofn.service.client",
    "Progress": "bestofn.service.client",
}
__all__ = ["AsyncClient", "BestOfNError", "Client", "Generation", "Progress", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bestofn' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
