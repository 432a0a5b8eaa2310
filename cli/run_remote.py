"""A job on a server, followed from here."""

from collections.abc import Mapping
from typing import Any

from bestofn.cli.output import Outcome
from bestofn.cli.progress_bar import JobBar
from bestofn.service.client.client import Client
from bestofn.service.core.settings import Settings


def generate(request: Mapping[str, Any], server: str, settings: Settings) -> Outcome:
    """Submit, follow and fetch. A job that is interrupted here is cancelled there.

    Raises:
        BestOfNError: what the server refused, or how the job ended if it did not succeed.
    """
    with Client(server, settings.api_key) as client:
        with JobBar() as bar:
            generation = client.generate(**request, on_progress=bar.show)
        shown = [candidate.index for candidate in generation.candidates if candidate.thumbnail is not None]
        thumbnails = {index: client.thumbnail(generation.result.id, index) for index in shown}
        return Outcome(generation.result, [winner.data for winner in generation.images], thumbnails)
