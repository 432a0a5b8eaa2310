"""The image checker behind an address."""

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from PIL import Image

from bestofn.judge.checker import CheckFailed, ImageChecker
from bestofn.judge.interface import pil_images
from bestofn.judge.preprocess import ImageLike
from bestofn.service.core.errors import JudgeAway
from bestofn.service.media.codec import encode
from bestofn.service.pairwise.calls import call_loop
from bestofn.service.pairwise.check_server import IMAGE_SECONDS, CheckServer


class RemoteChecker(ImageChecker):
    """An image checker behind an address; every check is one call, and the calls of an `ask` run together."""

    def __init__(self, server: CheckServer) -> None:
        """
        Args:
            server: whose calls run in the event loop of all such calls.
        """
        self._server = server

    def ask(self, images: Sequence[ImageLike] | torch.Tensor) -> list[Future[bool]]:
        """As `ImageChecker.ask`; the calls have begun."""
        return [asyncio.run_coroutine_threadsafe(self._check(image), call_loop()) for image in pil_images(images)]

    def answered(self, row: Future[bool]) -> bool:
        """As `ImageChecker.answered`."""
        return row.done()

    def unsafe(self, row: Future[bool]) -> bool:
        """As `ImageChecker.unsafe`."""
        try:
            return row.result()
        except JudgeAway as error:
            raise CheckFailed(error.quiet) from error
        except TimeoutError as error:
            raise CheckFailed(f"the image checker did not answer within {IMAGE_SECONDS:.0f} s") from error

    async def _check(self, image: Image.Image) -> bool:
        file = await asyncio.to_thread(encode, image, "png")
        return await self._server.unsafe({"image": base64.b64encode(file).decode()}, IMAGE_SECONDS)
