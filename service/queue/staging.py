"""Staging of images: they are stored before the script that accepts their job or completes their heat."""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import OutOfMemoryError, ResponseError

STAGED_MS = 600_000  # images of a heat that was never completed go after this


async def stage(redis: Any, key: str, images: Mapping[int, bytes]) -> bool:
    """Store images outside of scripts, which would block the server; they replace those of an earlier attempt.

    Args:
        redis: the queue's client.
        key: of the hash.
        images: bytes, or references to files, by candidate.

    Returns:
        False: the server's memory is full.
    """
    try:
        async with redis.pipeline(transaction=False) as pipe:
            pipe.unlink(key)
            pipe.hset(key, mapping={str(index): image for index, image in images.items()})
            pipe.pexpire(key, STAGED_MS)
            await pipe.execute()
    except OutOfMemoryError:
        return False
    except ResponseError as error:  # of a pipeline, with the command put in front
        if "OOM" not in str(error):
            raise
        return False
    return True
