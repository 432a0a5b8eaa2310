"""Wire schemas of POST /rank: images that exist are judged, in place of candidates that are drawn."""

from pydantic import Field

from bestofn.judge.verdict import Rule
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import Finals, Priority
from bestofn.service.core.request_model import RequestModel

MIN_IMAGES, MAX_IMAGES = 2, 64
MAX_IMAGE_BYTES = 16 * 2**20  # one image's file
MAX_TOTAL_BYTES = 32 * 2**20  # all files of a request
MAX_IMAGE_PIXELS = 2**24  # one image: 4,096 x 4,096
MAX_TOTAL_PIXELS = 2**27  # all images of a request: 64 of 1,448 x 1,448
MAX_BODY_BYTES = MAX_TOTAL_BYTES * 4 // 3 + 2**20  # data URLs are a third longer than their files


class RankFields(RequestModel):
    """The fields of POST /rank but its images. Fields that are left out or null take their defaults."""

    prompt: str = Field(min_length=1, max_length=2000, examples=["a photo of a red star left of a blue circle"])
    top_k: int = Field(1, strict=True, ge=1, le=16, description="Winners in `images`, best first; at most all images.")
    judge: str | None = None
    rule: Rule = Rule.MARGIN
    finals: Finals | None = Field(
        default=None, description="A knockout by the operator's pairwise judge among the leaders."
    )
    priority: Priority = "interactive"
    deadline_seconds: float | None = Field(
        default=None,
        strict=True,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds after which the ranks so far are returned.",
    )
    thumbnails: bool = Field(False, strict=True, description="Keep a thumbnail of each image.")
    webhook: str | None = Field(
        default=None, description="As of POST /generate.", examples=["https://example.net/hook"]
    )


class RankRequest(RankFields):
    """The JSON body of POST /rank."""

    images: list[str] = Field(
        description="Data URLs of PNG, WebP or JPEG files, each at most 16 MiB and 16 Mi pixels, together 32 MiB.",
        json_schema_extra={"minItems": MIN_IMAGES, "maxItems": MAX_IMAGES},
        examples=[["data:image/png;base64,iVBORw0KGgo=", "data:image/png;base64,iVBORw0KGgo="]],
    )


def check_number(images: int) -> None:
    """Raise InvalidRequest unless a request may have this number of images."""
    if not MIN_IMAGES <= images <= MAX_IMAGES:
        fix = "send at least one more" if images < MIN_IMAGES else "send the rest in another request"
        raise InvalidRequest(f"images must be {MIN_IMAGES} to {MAX_IMAGES} files, got {images}; {fix}", field="images")


def shown_name(number: int, name: str) -> str:
    """What errors call an image: its number, from 0, and the name of its file."""
    return f"images[{number}] ({name})" if name else f"images[{number}]"


def check_sizes(names: list[str], sizes: list[int]) -> None:
    """Raise InvalidRequest if a file is empty or too large, or all together are.

    Args:
        names: the images' names, for errors.
        sizes: bytes of their files.
    """
    for name, size in zip(names, sizes, strict=True):
        if not size:
            raise InvalidRequest(f"{name} is an empty file; leave it out", field="images")
        if size > MAX_IMAGE_BYTES:
            raise InvalidRequest(
                f"{name} has {size:,} bytes, and an image may have {MAX_IMAGE_BYTES:,}; shrink it, or send it as JPEG "
                "or WebP",
                field="images",
            )
    if sum(sizes) > MAX_TOTAL_BYTES:
        raise InvalidRequest(
            f"images have {sum(sizes):,} bytes together, and may have {MAX_TOTAL_BYTES:,}; send fewer or smaller "
            "ones, or JPEG or WebP",
            field="images",
        )


def check_pixels(pixels: int) -> None:
    """Raise InvalidRequest if all images together have too many pixels."""
    if pixels > MAX_TOTAL_PIXELS:
        raise InvalidRequest(
            f"images have {pixels:,} pixels together, and may have {MAX_TOTAL_PIXELS:,}; send fewer or smaller ones",
            field="images",
        )
