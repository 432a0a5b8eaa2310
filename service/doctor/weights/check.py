"""A checkpoint by name: which of its facts agree with what the loaders take, and what each disagreement would do."""

from collections.abc import Iterator
from pathlib import Path

from bestofn.judge.layout import PARTS
from bestofn.judge.names import parse_name
from bestofn.models.checkpoint import EMBEDDED, Checkpoint, is_pipeline, pipeline_parts
from bestofn.models.errors import CheckpointError
from bestofn.models.hub import cached, local_folder
from bestofn.service.doctor.findings import Finding
from bestofn.service.doctor.weights.generator_files import check_generator
from bestofn.service.doctor.weights.judge_files import check_judge
from bestofn.service.doctor.weights.part_files import guarded, weights
from bestofn.service.host.packages import can_draw_here

JUDGE = Path(__file__).resolve().parents[3] / "judge" / "weights" / "shapes"


def folders(name: str) -> list[Path]:
    """The folders that a name means: shapes is a generator and a judge.

    Raises:
        CheckpointError: there is no such folder, and the hub's cache does not have the whole of it.
    """
    if name in EMBEDDED:
        return [EMBEDDED[name], JUDGE]
    place = parse_name(name).place
    folder = local_folder(place, "checkpoint") or cached(place)
    if folder is None:
        raise CheckpointError(f"{name} is not whole on this machine: `bestofn models download {name}` fetches it")
    return [folder]


def check_files(folder: Path) -> Iterator[Finding]:
    """Findings on one folder, a generator's or a judge's, from configs, indexes and headers; needs no torch."""
    if _is_flat(folder):
        return weights(folder)
    if is_pipeline(folder):
        return _check_pipeline(folder)
    if _is_generator(folder):
        return guarded("model_index", check_generator(folder))
    return guarded("config", check_judge(folder))


def check(folder: Path) -> Iterator[Finding]:
    """`check_files`, and names and shapes of weights where torch is installed; no weight is read."""
    yield from check_files(folder)
    if _is_flat(folder):
        return  # transformers compares names and shapes when it loads
    if not can_draw_here():
        fix = "a worker checks them, or this command where 'bestofn[worker]' is installed"
        yield Finding("warn", "names", "names and shapes of weights are not checked here", fix)
        return
    if is_pipeline(folder):  # diffusers compares names and shapes when it loads
        from bestofn.models.pipelines.family import Family

        try:
            Family.of(Checkpoint(str(folder), folder, ""))
        except CheckpointError as error:
            yield Finding("fail", "model_index", str(error), "name a text-to-image pipeline, with all of its parts")
        return
    from bestofn.service.doctor.weights.keys import generator_keys, judge_keys

    yield from generator_keys(folder) if _is_generator(folder) else judge_keys(folder)


def _check_pipeline(folder: Path) -> Iterator[Finding]:
    """Whether all parts of a pipeline of another family than SANA are there and whole."""
    for part, weighs in pipeline_parts(folder).items():
        if not (folder / part).is_dir():
            yield Finding("fail", part, f"{folder} has no {part}/", "download or copy it again, the whole of it")
        elif weighs:
            yield from weights(folder / part)


def _is_flat(folder: Path) -> bool:
    """Whether a folder has the layout of one model of transformers: a judge by vlm: or clip:."""
    one = (folder / "config.json").exists() and not (folder / "model_index.json").exists()
    return one and not any((folder / part).is_dir() for part in PARTS)


def _is_generator(folder: Path) -> bool:
    """Whether a folder has a generator's layout rather than a judge's."""
    return (folder / "model_index.json").exists() or not (folder / "llm").is_dir()
