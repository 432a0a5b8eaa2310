"""The secret that signs addresses of pictures: of the queue, so that every API process knows it."""

import secrets
from typing import Any

from bestofn.service.queue.keys import Keys


async def signing_key(redis: Any, keys: Keys) -> bytes:
    """The secret, made where there is none. Who can read it can read the pictures in the queue too."""
    key = keys("signing_key")
    if (known := await redis.get(key)) is None:
        made = secrets.token_hex(32).encode()
        known = await redis.set(key, made, nx=True, get=True) or made
    return bytes(known)
