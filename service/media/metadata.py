"""Metadata and provenance of an image, in its own file: PNG text chunks, or EXIF in WebP and JPEG."""

import io
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bestofn.judge.verdict import Rule
from bestofn.service.core.field_errors import explain
from bestofn.service.core.jobs import Candidate, ImageFormat, JobSpec, Revision
from bestofn.service.core.schemas import VerdictOut
from bestofn.service.core.version import VERSION
from bestofn.service.core.workers import PipelineCall

KEY = "bestofn"  # name of the PNG chunk with the story as JSON; the other chunks are for other programs
MAX_JSON = 256 * 1024  # characters; ours have at most some 50,000, with the longest prompts
_COMMIT_DIGITS = 40

# EXIF tags, and the prefix that says how a UserComment is written.
_DESCRIPTION, _SOFTWARE, _EXIF, _COMMENT = 0x010E, 0x0131, 0x8769, 0x9286
_ASCII, _UNICODE = b"ASCII\0\0\0", b"UNICODE\0"

# What Pillow raises for files that are damaged or made to harm.
_MALFORMED = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, struct.error, EOFError)


class Story(BaseModel):
    """All that the image depends on, and nothing else: the same image has the same story, whichever job drew it.

    The prompts are None where the request wanted them left out, `layers` where all of the transformer's ran, `pipeline`
    where the model is SANA.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=(), allow_inf_nan=False)
    prompt: str | None = Field(max_length=10_000)
    negative_prompt: str | None = Field(max_length=10_000)
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    layers: tuple[int, ...] | None = Field(default=None, max_length=1000, exclude_if=lambda layers: layers is None)
    rule: Rule
    verdict: VerdictOut
    model: Revision
    pipeline: PipelineCall | None = Field(default=None, exclude_if=lambda pipeline: pipeline is None)
    judge: Revision
    second_judge: Revision | None = Field(default=None, exclude_if=lambda revision: revision is None)
    software: str

    @classmethod
    def of(
        cls, spec: JobSpec, candidate: Candidate, pipeline: PipelineCall | None = None, *, signed: bool = False
    ) -> "Story":
        """The story of one candidate of a job. That of a `signed` file has the prompts only if the request says so."""
        embed = not signed if spec.embed_prompt is None else spec.embed_prompt
        return cls(
            prompt=spec.prompt if embed else None,
            negative_prompt=spec.negative_prompt if embed else None,
            seed=spec.seed + candidate.index,
            width=spec.width,
            height=spec.height,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            layers=spec.layers,
            rule=spec.rule,
            verdict=VerdictOut.of(candidate.verdict),
            model=_public(Revision(name=spec.model.name, revision=spec.model.weights)),
            pipeline=pipeline,
            judge=_public(spec.judge),
            second_judge=_public(spec.second_judge) if candidate.verdict.second and spec.second_judge else None,
            software=f"bestofn {VERSION}",
        )

    def save_options(self, format: ImageFormat) -> dict[str, Any]:
        """What Pillow's `save` needs to write the story into a file of this format."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)  # ASCII, as the chunk and the comment must be
        if format == "png":
            chunks = PngImagePlugin.PngInfo()
            chunks.add_text("Software", self.software)
            if self.prompt is not None:
                chunks.add_itxt("Description", self.prompt)
            chunks.add_itxt("parameters", self._parameters())
            chunks.add_text(KEY, text)
            return {"pnginfo": chunks}
        exif = Image.Exif()
        exif[_SOFTWARE] = self.software
        if self.prompt is not None:
            exif[_DESCRIPTION] = self.prompt.encode()
        exif[_EXIF] = {_COMMENT: _ASCII + text.encode("ascii")}
        # Pillow declares the comment as numbers of a byte (type 1), which exiv2 prints; EXIF wants UNDEFINED (type 7).
        before, declared, after = exif.tobytes().rpartition(struct.pack(">HH", _COMMENT, 1))
        return {"exif": before + declared[:-1] + b"\7" + after}

    def _parameters(self) -> str:
        """The text that AUTOMATIC1111's web UI writes, and that many programs show."""
        prompts = "" if self.prompt is None else f"{self.prompt}\nNegative prompt: {self.negative_prompt}\n"
        sampling = f"Steps: {self.num_inference_steps}, Sampler: default, CFG scale: {self.guidance_scale}"
        size = f"{self.width}x{self.height}"
        return (
            f"{prompts}{sampling}, Seed: {self.seed}, Size: {size}, Model: {self.model.name}, Version: {self.software}"
        )


@dataclass(frozen=True, slots=True)
class OtherStory:
    """What another program wrote into an image, by the names it used."""

    program: str
    texts: Mapping[str, str]


def read_story(data: bytes) -> Story | OtherStory | None:
    """The story in an image file's bytes; None if it has none.

    Raises:
        ValueError: the bytes are no readable image, or its story is damaged.
    """
    texts = _texts(data)
    written = texts.get(KEY) or texts.get("UserComment", "")
    if KEY in texts or (written.startswith("{") and texts.get("Software", "").startswith(f"{KEY} ")):
        return _parse(written)
    return OtherStory(_program(texts), texts) if texts else None


def _public(revision: Revision) -> Revision:
    """A folder's path is its owner's business: images travel, so they name its last part only."""
    from_hub = len(revision.checkpoint.revision) == _COMMIT_DIGITS
    return revision if from_hub else revision.model_copy(update={"name": PurePath(revision.name).name or revision.name})


def _parse(text: str) -> Story:
    if len(text) > MAX_JSON:
        raise ValueError(f"the image's story has {len(text):,} characters, but a story has at most {MAX_JSON:,}")
    try:
        return Story.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise ValueError(f"the image's story is damaged: {explain(first, place)}") from error


def _texts(data: bytes) -> dict[str, str]:
    """Everything textual that the file says before its pixels; these are not read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd EXIF: what can be read is read
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
                found = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
                exif = Image.Exif()  # not image.getexif(), which decodes the pixels of a PNG without EXIF
                if isinstance(raw := image.info.get("exif"), bytes):
                    exif.load(raw)
                comment = exif.get_ifd(_EXIF).get(_COMMENT)
                named = {"Software": exif.get(_SOFTWARE), "ImageDescription": exif.get(_DESCRIPTION)}
        except (*_MALFORMED, Image.DecompressionBombError) as error:
            reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
            raise ValueError(f"not a readable PNG, WebP or JPEG ({len(data):,} bytes){reason}") from error
    # Pillow reads EXIF text as Latin-1; what was written is UTF-8, or what the program's author had.
    found |= {key: _utf8(text) for key, text in named.items() if isinstance(text, str) and text}
    if isinstance(comment, bytes):
        found["UserComment"] = _comment(comment)
    return {key: text for key, text in found.items() if text}


def _utf8(text: str) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _comment(content: bytes) -> str:
    prefix, text = content[:8], content[8:]
    if prefix == _UNICODE:  # UTF-16 of either order: the high bytes of most characters of a prompt are zero
        order = "utf-16-be" if text[::2].count(0) >= text[1::2].count(0) else "utf-16-le"
        return text.decode(order, "replace")
    return (text if prefix == _ASCII else content).decode("utf-8", "replace").strip("\0 ")


def _program(texts: Mapping[str, str]) -> str:
    if "parameters" in texts or "Steps: " in texts.get("UserComment", ""):
        return "AUTOMATIC1111's web UI, or one that writes like it"
    if "workflow" in texts or "prompt" in texts:
        return "ComfyUI"
    return texts.get("Software") or "another program"
