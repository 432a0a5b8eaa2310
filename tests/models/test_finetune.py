"""Fine-tuning on images with captions: one process and two compute the same, and a run that was cut off goes on."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import SanaTransformer2DModel
from PIL import Image
from typer.testing import CliRunner

from bestofn.cli.commands.train import program
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.models.generator import Generator
from bestofn.models.weight_files import whole_folder
from bestofn.training.generator.captioned_images import ImageTextPair, pairs
from bestofn.training.generator.finetune import FinetuneSettings, Float32LinearAttention, finetune, write
from bestofn.training.generator.image_dataset import pixels
from bestofn.training.runs import Run

CPU = torch.device("cpu")
COLOURS = ("red", "green", "blue", "white", "black", "orange")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (70 + i, 64), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} wall\n")
    return folder


def settings(folder: Path, album: Path, **changes: object) -> FinetuneSettings:
    base = FinetuneSettings(
        folder, album, 64, 64, steps=4, learning_rate=1e-3, accumulate=2, ema=0.9, warmup_steps=2, save_every=1
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def same_weights(a: Path, b: Path) -> float:
    x, y = (Run(a, "checkpoint-0-of-1.pt").load(), Run(b, "checkpoint-0-of-1.pt").load())
    assert x is not None
    assert y is not None
    return max(float((p - q).abs().max()) for p, q in zip(x["weights"], y["weights"], strict=True))


@pytest.mark.parametrize("optimizer", ["came8bit", "adamw", "muon"])
def test_a_run_that_was_cut_off_goes_on_bit_by_bit(
    tmp_path: Path, album: Path, tiny_checkpoints: dict[str, Path], optimizer: str
) -> None:
    checkpoint = Checkpoint.resolve(str(tiny_checkpoints["tiny"]))
    straight = settings(tmp_path / "straight", album, optimizer=optimizer)
    finetune(checkpoint, straight, CPU, lambda _: None)
    broken = settings(tmp_path / "broken", album, optimizer=optimizer)
    finetune(checkpoint, dataclasses.replace(broken, steps=2), CPU, lambda _: None)
    state = finetune(checkpoint, broken, CPU, lambda _: None)
    assert same_weights(straight.folder, broken.folder) == 0
    assert losses(straight.folder) == losses(broken.folder)
    write(state, checkpoint, tmp_path / "out", "trained")
    assert Generator(Checkpoint.resolve(str(tmp_path / "out"))).prompt_contexts([("a red wall", False)])


def test_a_read_only_checkpoint_is_trained_into_a_folder_that_can_be_written(
    tmp_path: Path, album: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_checkpoints["tiny"], source)
    os.rename(source / "tokenizer", tmp_path / "tokenizer")
    (source / "tokenizer").symlink_to(tmp_path / "tokenizer")
    for path in (*source.rglob("*"), source):
        path.chmod(path.stat().st_mode & ~0o222)
    checkpoint = Checkpoint.resolve(str(source))
    state = finetune(checkpoint, settings(tmp_path / "run", album, steps=1), CPU, lambda _: None)
    write(state, checkpoint, out, "trained")
    assert all(path.stat().st_mode & 0o200 for path in (out, *out.rglob("*")))  # root may write without that bit
    assert Generator(Checkpoint.resolve(str(out))).prompt_contexts([("a red wall", False)])


def test_a_folder_that_cannot_be_written_in_full_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "part").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"), whole_folder(tmp_path / "out") as fresh:
        full(fresh)
    assert list(tmp_path.iterdir()) == []


def test_accumulated_forwards_are_one_larger_batch(
    tmp_path: Path, album: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    checkpoint = Checkpoint.resolve(str(tiny_checkpoints["tiny"]))
    for name, changes in (("two", {}), ("one", {"batch_size": 2, "accumulate": 1})):
        finetune(checkpoint, settings(tmp_path / name, album, steps=2, **changes), CPU, lambda _: None)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)


WORKER = """
import sys
from pathlib import Path
import torch
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.training.generator.finetune import FinetuneSettings, finetune, write
from bestofn.training.distributed import processes
checkpoint, album, root = sys.argv[1:]
torch.set_num_threads(1)
with processes() as device:
    source = Checkpoint.resolve(checkpoint)
    for optimizer, steps in (("came8bit", 2), ("came8bit", 4), ("adamw", 2), ("adamw", 4), ("muon", 1)):
        folder = Path(root) / optimizer
        settings = FinetuneSettings(
            folder, Path(album), 64, 64, steps=steps, learning_rate=1e-3, accumulate=1, ema=0.9, warmup_steps=2,
            save_every=1, optimizer=optimizer,
        )
        try:
            write(finetune(source, settings, device, lambda _: None), source, folder / "out", "trained")
        except ModelError as error:
            (Path(root) / "refusal").write_text(str(error))
"""


TWO_PROCESSES = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of several threads have another order, by which AdamW turns updates of gradients near zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_compute_what_one_does(tmp_path: Path, album: Path, tiny_checkpoints: dict[str, Path]) -> None:
    tiny = tiny_checkpoints["tiny"]
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    child = subprocess.run(
        [*TWO_PROCESSES, program, tiny, album, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert "take came8bit" in (tmp_path / "refusal").read_text()
    checkpoint = Checkpoint.resolve(str(tiny))
    for optimizer in ("came8bit", "adamw"):
        both, alone = tmp_path / optimizer, tmp_path / f"{optimizer}-alone"
        state = finetune(checkpoint, settings(alone, album, optimizer=optimizer), CPU, lambda _: None)
        write(state, checkpoint, alone / "out", "trained")
        assert losses(both) == pytest.approx(losses(alone), rel=1e-4)
        ours, theirs = (SanaTransformer2DModel.from_pretrained(run / "out" / "transformer") for run in (alone, both))
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.dtype == b.dtype
            assert (a - b).norm() <= 0.01 * a.norm()  # they are stored in bfloat16


def test_on_the_command_line(tmp_path: Path, album: Path, tiny_checkpoints: dict[str, Path]) -> None:
    folders = [tiny_checkpoints["tiny"], album, "--run", tmp_path / "run", "--out", tmp_path / "o"]
    options = ["--steps", 1, "--width", 64, "--height", 64, "--bf16", "--checkpointing", "--ema", 0]
    result = CliRunner().invoke(program, ["finetune", *map(str, [*folders, *options])])
    assert result.exit_code == 0, result.output
    assert "trained for 1 steps" in (tmp_path / "o" / "README.md").read_text()
    assert Checkpoint.resolve(str(tmp_path / "o"))


def test_attention_is_the_pipelines(tiny_checkpoints: dict[str, Path]) -> None:
    model = SanaTransformer2DModel.from_pretrained(tiny_checkpoints["tiny"] / "transformer", torch_dtype=torch.float32)
    x, text, t = torch.randn(2, 8, 8, 8), torch.randn(2, 5, 48), torch.tensor([10.0, 900.0])
    with torch.no_grad():
        wanted = model(x, text, t).sample
        for block in model.transformer_blocks:
            block.attn1.set_processor(Float32LinearAttention())
        got = model(x, text, t).sample
    assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_shards_hold_the_pairs_of_a_folder(tmp_path: Path, album: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as tar:
        for file in sorted(album.iterdir()):
            tar.add(file, f"some/{file.name}")
        odd = tarfile.TarInfo("some/5.json")
        tar.addfile(odd, io.BytesIO())
    plain, packed = list(pairs(album)), list(pairs(shards))
    assert [(p.image, p.caption) for p in plain] == [(p.image, p.caption) for p in packed]
    assert [p.caption for p in plain] == [f"a {colour} wall" for colour in COLOURS]
    assert pixels(plain[0], 64, 32)[:, 5, 5].tolist() == [1, -1, -1]


def test_a_distilled_checkpoint_is_refused(tmp_path: Path, album: Path, tiny_checkpoints: dict[str, Path]) -> None:
    checkpoint = Checkpoint.resolve(str(tiny_checkpoints["sprint"]))
    with pytest.raises(ModelError, match=r"this training would undo: take SANA-1\.5"):
        finetune(checkpoint, settings(tmp_path, album), CPU, lambda _: None)


def test_pairs_file_that_is_no_pair_is_named(tmp_path: Path, album: Path) -> None:
    with pytest.raises(ModelError, match="has no images: it takes"):
        list(pairs(tmp_path))
    shutil.copyfile(album / "0.png", tmp_path / "alone.png")
    with pytest.raises(ModelError, match=r"alone\.png has no caption: write it to alone\.txt"):
        list(pairs(tmp_path))


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


CAPTION_FILES = {
    "a.txt": b"a fox\n",
    "a.TXT": "\ufeffa fox".encode(),
    "a.caption": b"a fox",
    "a.json": b'{"prompt": "a fox", "clipscore": 0.3}',
    "metadata.jsonl": b'{"file_name": "a.png", "text": "a fox"}\n',
}


@pytest.mark.parametrize(("file", "content"), CAPTION_FILES.items(), ids=CAPTION_FILES.keys())
def test_pairs_captions_are_read_as_people_write_them(tmp_path: Path, file: str, content: bytes) -> None:
    members = {"._a.png": b"\0\5\x16\7", f"._{file}": b"\0\5\x16\7", "a.png": png(), file: content}
    folder = tmp_path / "folder" / "sub"
    folder.mkdir(parents=True)
    for name, body in members.items():
        (folder / name).write_bytes(body)
    assert [(pair.name, pair.caption) for pair in pairs(tmp_path / "folder")] == [(str(folder / "a.png"), "a fox")]
    if file != "metadata.jsonl":
        tar_of(tmp_path / "a.tar", {f"./{name}": body for name, body in members.items()})
        (pair,) = [pair for pair in pairs(tmp_path) if ".tar" in pair.name]
        assert (pair.name, pair.image, pair.caption) == (f"{tmp_path / 'a.tar'}:./a.png", png(), "a fox")


def test_pairs_metadata_above_its_images_names_them_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.PNG").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "./sub/a.PNG", "caption": "a fox"}')
    assert [pair.caption for pair in pairs(tmp_path)] == ["a fox"]


BROKEN_CAPTIONS = {
    "not UTF-8": ("a.txt", "f\xfcchs".encode("latin-1"), r"a\.txt is not UTF-8 \(byte 1\)"),
    "no JSON": ("a.json", b"{", r"a\.json is not JSON"),
    "no object": ("a.json", b"[1]", r"a\.json must hold a JSON object"),
    "no caption": ("a.json", b'{"width": 3}', r"a\.json has no caption: one of prompt, caption, text"),
    "nothing": ("a.npy", b"", r"a\.png has no caption"),
}


@pytest.mark.parametrize(("file", "content", "said"), BROKEN_CAPTIONS.values(), ids=BROKEN_CAPTIONS.keys())
def test_pairs_errors_name_the_file_and_the_member(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    members = {"a.png": png(), file: content}
    (tmp_path / "folder").mkdir()
    for name, body in members.items():
        (tmp_path / "folder" / name).write_bytes(body)
    tar_of(tmp_path / "a.tar", members)
    with pytest.raises(ModelError, match=f"folder/{said}"):
        list(pairs(tmp_path / "folder"))
    with pytest.raises(ModelError, match=rf"a\.tar:{said}"):
        list(pairs(tmp_path))


def test_pairs_metadata_errors_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for line, said in (
        ('{"file_name": "b.png", "text": "x"}', ": \"file_name\" must name a file in that folder, got 'b.png'"),
        ('{"file_name": "a.png"}', " has no caption"),
        ("a.png, a fox", " is not JSON"),
    ):
        (tmp_path / "metadata.jsonl").write_text(f"\n{line}\n")
        with pytest.raises(ModelError, match=rf"metadata\.jsonl, line 2{said}"):
            list(pairs(tmp_path))


def test_pairs_a_shard_that_is_cut_short_names_the_member(tmp_path: Path) -> None:
    noise = os.urandom(4096)
    tar_of(tmp_path / "a.tar", {"a.png": png(), "a.txt": b"a fox", "b.png": noise, "b.txt": b"a hen"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(noise) + 100])
    with pytest.raises(ModelError, match=r"a\.tar:b\.png cannot be read: unexpected end of data"):
        list(pairs(tmp_path))
    (tmp_path / "a.tar").write_bytes(b"not a tar at all")
    with pytest.raises(ModelError, match=r"a\.tar cannot be read"):
        list(pairs(tmp_path))


def test_pixels_names_a_broken_image_and_warns_of_an_animation() -> None:
    with pytest.raises(ValueError, match=r"^shard\.tar:a\.png: not a readable PNG, WebP or JPEG"):
        pixels(ImageTextPair("shard.tar:a.png", png()[:40], "a fox"), 8, 8)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file, said = io.BytesIO(), []
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    first = pixels(ImageTextPair("film.webp", file.getvalue(), "a fox"), 8, 8, said.append)
    assert first[:, 0, 0].tolist() == [1, -1, -1]
    assert said == ["film.webp is an animation of 2 frames, of which the first is read"]
