"""What a job came to: its winners as images, and all that was judged on the way."""

import base64
import html
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from bestofn.service.core.jobs import ImageFormat
from bestofn.service.core.schemas import CandidateOut, FinalsOut, JobResult, MatchOut, UsageOut, VerdictOut
from bestofn.service.host.files import naming
from bestofn.service.media.codec import MEDIA_TYPES, read_header

_STYLE = "margin:0;display:inline-block;max-width:min(100%,512px);font:14px/1.4 system-ui,sans-serif"


@dataclass(frozen=True)
class Winner:
    """An image that won. In a notebook it shows itself.

    Attributes:
        rank: 1 is the best.
        candidate: its number in the job, from 0.
        seed: seed of its noise; the same seed and parameters draw the same image. None: the image was sent.
        verdict: the judge's answer on it.
        data: the file's bytes, as the server made them.
        format: format of `data`.
    """

    rank: int
    candidate: int
    seed: int | None
    verdict: VerdictOut
    data: bytes = field(repr=False)
    format: ImageFormat = "png"

    @property
    def score(self) -> float | None:
        """Probability of yes, 0 to 1; None if the judge's numbers were not finite."""
        return self.verdict.p_yes

    @cached_property
    def image(self) -> Image.Image:
        """The image; what the file says of it is in `image.info`."""
        image = Image.open(io.BytesIO(self.data), formats=("PNG", "WEBP", "JPEG"))
        image.load()
        return image

    def save(self, path: str | Path) -> Path:
        """Write the image and return its path.

        The server's bytes are written if the suffix is of their format or missing; else Pillow converts the image.
        """
        path = Path(path)
        named = Image.registered_extensions().get(path.suffix.lower())
        with naming(path):
            if not path.suffix or named == self.format.upper():
                path.write_bytes(self.data)
            else:
                self.image.save(path)
        return path

    def _repr_png_(self) -> bytes:
        if self.format == "png":
            return self.data
        file = io.BytesIO()
        self.image.save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class Generation:
    """A job that has succeeded. In a notebook it shows its best image with prompt, score and seed.

    >>> generation = client.generate("a red star left of a blue circle", num_samples=32, top_k=4)
    >>> generation.image.size, generation.seed, generation.score
    ((128, 128), 1729, 0.987)
    >>> generation.images[1].save("second.png")

    Attributes:
        result: all that the server says of the job.
        images: the winners, best first.
    """

    result: JobResult
    images: tuple[Winner, ...]

    @classmethod
    def of(cls, result: JobResult, images: list[bytes]) -> "Generation":
        """From a result with its winners' files, best first."""
        winners = zip(result.images, images, strict=True)
        return cls(
            result,
            tuple(
                Winner(shown.rank, shown.candidate, shown.seed, shown.verdict, data, read_header(data).format)
                for shown, data in winners
            ),
        )

    @property
    def best(self) -> Winner:
        """The winner."""
        return self.images[0]

    @property
    def image(self) -> Image.Image:
        """The winner's image."""
        return self.best.image

    @property
    def seed(self) -> int | None:
        """The winner's."""
        return self.best.seed

    @property
    def score(self) -> float | None:
        """The winner's probability of yes."""
        return self.best.score

    @property
    def prompt(self) -> str:
        return self.result.prompt

    @property
    def candidates(self) -> list[CandidateOut]:
        """All that were judged, by index, each with its rank."""
        return self.result.candidates

    @property
    def bracket(self) -> list[list[MatchOut]]:
        """The knockout, first round first."""
        return self.result.bracket

    @property
    def finals(self) -> FinalsOut | None:
        """The knockout among the leaders by a pairwise judge, if it was played."""
        return self.result.finals

    @property
    def usage(self) -> UsageOut | None:
        """What the job cost."""
        return self.result.usage

    def save(self, path: str | Path) -> Path:
        """Write the winner, as `Winner.save` does."""
        return self.best.save(path)

    def __repr__(self) -> str:
        judged = f"best of {len(self.candidates)}"
        return f"Generation({self.prompt!r}, {judged}, score={_shown(self.score)}, seed={self.seed})"

    def _repr_html_(self) -> str:
        best = self.best
        source = f"data:{MEDIA_TYPES[best.format]};base64,{base64.b64encode(best.data).decode()}"
        prompt = html.escape(self.prompt)
        facts = f"score {_shown(best.score)} · seed {best.seed} · best of {len(self.candidates)}"
        return (
            f'<figure style="{_STYLE}"><img src="{source}" alt="{prompt}" style="max-width:100%;border-radius:6px">'
            f"<figcaption>{prompt}<br><small>{facts}</small></figcaption></figure>"
        )


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"
