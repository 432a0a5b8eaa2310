"""Images that carry their story: written and read in every format, and remade from it."""

import contextlib
import io
import json
import random
import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import bestofn
from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Candidate, ImageFormat, JobSpec, Revision
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import fake_image
from bestofn.service.engine.loader import load_engine
from bestofn.service.media.codec import decode, encode
from bestofn.service.media.metadata import OtherStory, Story, read_story
from bestofn.service.media.reproduce import diffusers_call, remake_request
from bestofn.service.worker.local import local_spec, run_local

FORMATS = get_args(ImageFormat)
PROMPTS = {
    "plain": "a red star",
    "any script": "ein Stern ☆ 星 🌟 \u202eimportant",
    "control characters": "two\nlines\tand\x01\x1b[31m\x7f\x85",
    "quotes": "\"a\" 'b' \\n {} ; rm -rf",
    "long": "🌟" * 2000,
}


@pytest.fixture
def tell(make_spec: Callable[..., JobSpec]) -> Callable[..., Story]:
    def make(**fields: object) -> Story:
        return Story.of(make_spec(**fields), Candidate(5, 12, Verdict("yes", 2.5, float("-inf"))))

    return make


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_story_written_into_a_file_is_read(prompt: str, format: ImageFormat, tell: Callable[..., Story]) -> None:
    story = tell(prompt=prompt, negative_prompt=prompt)
    data = encode(fake_image(3, 32, 32), format, story)
    assert read_story(data) == story
    assert decode(data).tobytes() == decode(encode(fake_image(3, 32, 32), format)).tobytes()
    image = Image.open(io.BytesIO(data))
    shown = image.info["Description"] if format == "png" else image.getexif()[0x010E].encode("latin-1").decode()
    assert shown == prompt, "for programs that do not know us"


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_comment_of_a_file_is_declared_as_text_of_exif(format: ImageFormat, tell: Callable[..., Story]) -> None:
    data = encode(fake_image(3, 32, 32), format, tell(prompt="\u0486\u2486"))  # in UTF-8 it has the tag's bytes
    assert re.findall(rb"\x92\x86\0([\x01-\x0d])", data) == [b"\x07"]


def test_png_has_the_parameters_that_other_programs_show(tell: Callable[..., Story]) -> None:
    def shown(**fields: object) -> str:
        image = Image.open(io.BytesIO(encode(fake_image(3, 32, 32), "png", tell(**fields))))
        return str(image.info["parameters"])

    options = "Steps: 2, Sampler: default, CFG scale: 4.5, Seed: 12, Size: 32x32, Model: fake, Version: bestofn "
    assert shown(negative_prompt="blur") == f"a red star\nNegative prompt: blur\n{options}{bestofn.__version__}"
    assert shown(embed_prompt=False) == options + bestofn.__version__


def test_read_story_of_a_png_reads_no_pixels(tell: Callable[..., Story]) -> None:
    data = encode(np.zeros((4096, 4096, 3), np.uint8), "png", tell())
    without_pixels = data[: data.index(b"IDAT") + 4]
    assert read_story(without_pixels) == tell()
    with pytest.raises(ValueError, match="truncated"):
        decode(without_pixels)


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_are_a_function_of_the_image_not_of_the_job(format: ImageFormat, tell: Callable[..., Story]) -> None:
    image = fake_image(3, 32, 32)
    one = encode(image, format, tell(seed=7, num_samples=8, top_k=2, heat_size=4, priority="batch"))
    assert one == encode(image, format, tell(seed=7, num_samples=64))
    assert one != encode(image, format, tell(model=Revision(name="fake", revision="2")))


@pytest.mark.parametrize("format", FORMATS)
def test_prompts_can_be_left_out(format: ImageFormat, tell: Callable[..., Story]) -> None:
    story = tell(prompt="a secret", negative_prompt="another secret", embed_prompt=False)
    data = encode(fake_image(3, 32, 32), format, story)
    assert read_story(data) == story
    assert (story.prompt, story.negative_prompt) == (None, None)
    assert b"secret" not in data
    assert "prompt" not in remake_request(story)


def test_a_story_says_all_that_the_image_depends_on_and_no_more(tell: Callable[..., Story]) -> None:
    deployed = Revision(name="/home/somebody/models/star", revision="0123456789ab")
    told = tell(model=deployed).model_dump(mode="json")
    assert told == {
        "prompt": "a red star",
        "negative_prompt": "",
        "seed": 12,
        "width": 32,
        "height": 32,
        "num_inference_steps": 2,
        "guidance_scale": 4.5,
        "rule": "margin",
        "verdict": {"answer": "yes", "yes_logit": 2.5, "no_logit": None, "p_yes": None},
        "model": {"name": "star", "revision": "0123456789ab"},  # the path is its owner's business
        "judge": {"name": "fake-judge", "revision": "1"},
        "software": f"bestofn {bestofn.__version__}",
    }


def _png(**texts: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def _jpeg(comment: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: comment}
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif.tobytes())
    return file.getvalue()


AUTOMATIC = "a star\nNegative prompt: blur\nSteps: 20, Sampler: Euler, Seed: 7"
OTHERS: dict[str, tuple[bytes, str, dict[str, str]]] = {
    "A1111, PNG": (_png(parameters=AUTOMATIC), "AUTOMATIC1111", {"parameters": AUTOMATIC}),
    "A1111, JPEG": (
        _jpeg(b"UNICODE\0" + AUTOMATIC.encode("utf-16-be")),
        "AUTOMATIC1111",
        {"UserComment": AUTOMATIC},
    ),
    "ComfyUI": (_png(prompt="{}", workflow='{"nodes": []}'), "ComfyUI", {"prompt": "{}", "workflow": '{"nodes": []}'}),
    "an editor": (_png(Software="Painter 3"), "Painter 3", {"Software": "Painter 3"}),
    "a comment": (_jpeg(b'ASCII\0\0\0{"seed": 1}'), "another program", {"UserComment": '{"seed": 1}'}),
}


@pytest.mark.parametrize(("data", "program", "texts"), OTHERS.values(), ids=OTHERS.keys())
def test_images_of_other_programs(data: bytes, program: str, texts: dict[str, str]) -> None:
    found = read_story(data)
    assert isinstance(found, OtherStory)
    assert found.program.startswith(program)
    assert found.texts == texts


def test_story_of_an_image_without_metadata_is_none() -> None:
    assert all(read_story(encode(fake_image(3, 32, 32), format)) is None for format in FORMATS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON: invalid JSON"),
        ("[]", "JSON must be an object"),
        ("{}", "prompt: field required"),
        ("[" * 100_000, "damaged"),
        (" " * 300_000, "at most 262,144"),
    ],
)
def test_damaged_stories_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_story(_png(bestofn=text))


@pytest.mark.parametrize("field", ["name", "guidance"])
def test_story_whose_pipeline_is_no_name_is_refused(field: str, tell: Callable[..., Story]) -> None:
    pipeline = {"name": "P", "dtype": "float32", "guidance": None, "reads_negative": False, "arguments": {}}
    story = tell().model_dump(mode="json") | {"pipeline": pipeline | {field: "os\nos.abort()"}}
    with pytest.raises(ValueError, match=f"pipeline.{field} must match"):
        read_story(_png(bestofn=json.dumps(story)))


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_never_do_worse(format: ImageFormat, tell: Callable[..., Story]) -> None:
    data = encode(fake_image(3, 32, 32), format, tell())
    dice = random.Random(0)
    for _ in range(300):
        broken = bytearray(data[: dice.randrange(len(data))] if dice.random() < 0.2 else data)
        for _ in range(dice.randrange(8)):
            if broken:
                broken[dice.randrange(len(broken))] = dice.randrange(256)
        with contextlib.suppress(ValueError):
            read_story(bytes(broken))


def test_the_diffusers_call(tell: Callable[..., Story]) -> None:
    hub = Revision(name="lab/Sana_Sprint", revision="9468102c3cebb657f8c4b5f1e5a71e989a15f10d")
    story = tell(prompt=PROMPTS["quotes"], negative_prompt="blur", seed=2**62)
    for each in (story, tell(model=hub), tell(embed_prompt=False)):
        compile(diffusers_call(each), "call", "exec")
    call = diffusers_call(story)
    assert repr(PROMPTS["quotes"]) in call
    assert 'negative_prompt="blur"' in call
    assert 'Checkpoint.resolve("fake")' in call
    call = diffusers_call(tell(model=hub, num_inference_steps=4))
    assert f'"lab/Sana_Sprint", revision="{hub.revision}"' in call
    assert "intermediate_timesteps=None" in call
    shallow = tell(layers=(0, 2, 5), depth=3)
    compile(diffusers_call(shallow), "call", "exec")
    assert "torch.nn.ModuleList(blocks[i] for i in [0, 2, 5])" in diffusers_call(shallow)
    assert remake_request(shallow)["depth"] == 3
    assert "depth" not in remake_request(story)
    GenerateRequest.model_validate(remake_request(story))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_the_best_of_eight_is_drawn_again_by_us_and_by_diffusers() -> None:
    settings = Settings(threads=1, devices="cpu", model="shapes", judge="shapes")
    engine = load_engine(settings)

    def draw(**fields: Any) -> bytes:
        run = run_local(local_spec(GenerateRequest(**fields), engine, settings), engine)
        return run.images[run.result.images[0].candidate]

    best = draw(
        prompt="a photo of a red star left of a blue circle", num_samples=8, seed=3, width=96, num_inference_steps=4
    )
    story = read_story(best)
    assert isinstance(story, Story)
    assert draw(**remake_request(story)) == best
    names: dict[str, Any] = {}
    exec(diffusers_call(story), names)
    apart = np.abs(np.asarray(names["image"]).astype(int) - np.asarray(decode(best)))
    assert (apart <= 1).mean() >= 0.999
