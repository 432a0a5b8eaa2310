"""The engine: a candidate is the same image whatever is batched beside it, and trouble stays with its heat."""

import gc
import re
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bestofn.judge.judge import Judge
from bestofn.judge.verdict import Rule
from bestofn.models.generator import Generator
from bestofn.models.random_init.checkpoint import SCM, make_random_checkpoint
from bestofn.models.sampling import generate
from bestofn.service.core.jobs import Candidate, Draft, JobSpec, SentImage, Usage
from bestofn.service.core.results import promoted, ranked
from bestofn.service.core.settings import Settings
from bestofn.service.engine.batch_sizes import Sizes, sizes_for
from bestofn.service.engine.engine import Engine
from bestofn.service.engine.judge_residency import JudgeResidency
from bestofn.service.engine.loader import load_engine
from bestofn.service.engine.prompts import STEP
from bestofn.service.engine.protocol import HeatFailed, HeatFinished, Judged, Stepped
from bestofn.service.engine.scheduler import Group
from bestofn.service.engine.side_stream import SideStream
from bestofn.service.engine.slot_group import SlotGroup
from bestofn.service.engine.slot_groups import IDLE_GROUPS
from bestofn.service.media.codec import decode, encode
from bestofn.service.media.metadata import Story
from bestofn.service.media.provenance import Signer, read_provenance, write_certificate
from bestofn.service.queue.codec import pack_heat, unpack_heat

JUDGE = Path(__file__).parents[2] / "fixtures" / "vila" / "checkpoint"
SIZES = Sizes(slots=6, strict=True, rows=4, decode=4, judge=3)
CHANGES = {
    "tiny": {"bestofn": {"complex_human_instruction": [], "max_sequence_length": 24}},
    "sprint": {
        "transformer": {"guidance_embeds": True},
        "scheduler": SCM,
        "bestofn": {"num_inference_steps": 2, "complex_human_instruction": [], "max_sequence_length": 24},
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: make_random_checkpoint("tiny", root / name, 7, changes) for name, changes in CHANGES.items()}


@pytest.fixture(scope="module")
def loaded(checkpoints):
    return load_engine(Settings(model=str(checkpoints["tiny"]), judge=str(JUDGE), threads=1, devices="cpu"))


@pytest.fixture
def make(loaded):
    """An engine over the loaded parts, or over a stand-in for one of them."""

    def make(sizes=SIZES, generator=None, judge=None, **options):
        held = JudgeResidency([lambda: judge or loaded._judge.get()], loaded.generator, shared=True)
        workers = loaded.model_info, loaded.judge_info
        return Engine(generator or loaded.generator, held, *workers, loaded.tokenizer_files, sizes, **options)

    return make


@pytest.fixture
def spec(loaded):
    def spec(id, **fields):
        defaults = {
            "prompt": "a photo of a red star",
            "num_samples": 1,
            "seed": 11,
            "width": 32,
            "height": 32,
            "num_inference_steps": 3,
            "guidance_scale": 4.5,
            "model": loaded.model_info.revision,
            "judge": loaded.judge_info.revision,
        }
        merged = defaults | fields
        return JobSpec(id=id, **({"top_k": merged["num_samples"]} | merged))

    return spec


def run(engine, *specs):
    """Runs jobs together to their end; the outcomes by job, each merged over its heats, and all events."""
    for job in specs:
        for heat in job.heats():
            engine.admit(heat)
    events = []
    while engine.busy:
        events += engine.tick()
    return events


def images(events, job):
    """Candidate -> (bytes, verdict) of a job."""
    outcomes = [event.outcome for event in events if isinstance(event, HeatFinished) and event.job == job]
    images = {index: data for outcome in outcomes for index, data in outcome.images.items()}
    verdicts = {candidate.index: candidate.verdict for outcome in outcomes for candidate in outcome.candidates}
    return {index: (images[index], verdicts[index]) for index in sorted(images)}


def test_engine_candidate_alone_or_among_other_jobs_is_byte_equal(make, spec):
    job = spec("job", num_samples=9, heat_size=4)
    reference = images(run(make(), job), "job")
    assert len({data for data, _ in reference.values()}) == 9

    alone = {i: images(run(make(), spec("one", seed=11 + i)), "one")[0] for i in (0, 4, 8)}
    assert all(alone[i] == reference[i] for i in alone)

    others = [
        spec("steps", prompt="two blue rings", num_samples=5, num_inference_steps=7, guidance_scale=2.0, seed=90),
        spec("unguided", prompt="a cross", num_samples=3, num_inference_steps=2, guidance_scale=1.0, seed=2),
        spec("wide", prompt="a very long prompt of many more words", num_samples=2, width=64, negative_prompt="grey"),
    ]
    crowd = run(make(), others[0], job, *others[1:])
    assert images(crowd, "job") == reference
    for other in others:
        assert images(crowd, other.id) == images(run(make(), other), other.id)

    resplit = run(make(), job.model_copy(update={"heat_size": 1}))
    assert images(resplit, "job") == reference
    assert images(run(make(Sizes(slots=3, strict=True, rows=4, decode=4, judge=3)), job), "job") == reference
    side_by_side = Sizes(slots=6, strict=True, rows=4, decode=4, judge=3, parallel=3)
    assert images(run(make(side_by_side), job, *others), "job") == reference


def test_without_strict_mode_images_are_equal_to_rounding(make, spec):
    job = spec("job", num_samples=5)
    strict = images(run(make(), job), "job")
    fast = images(run(make(Sizes(slots=6, strict=False, rows=12, decode=4, judge=3)), job), "job")
    for (_, verdict), (_, other) in zip(strict.values(), fast.values(), strict=True):
        assert verdict.yes_logit == pytest.approx(other.yes_logit, abs=1e-2)


def test_another_process_makes_the_same_bytes(checkpoints, make, spec, tmp_path):
    job = spec("job", num_samples=2)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    program = (
        "import sys; from pathlib import Path; from bestofn.service.core.jobs import JobSpec;"
        "from bestofn.service.engine.loader import load_engine; from bestofn.service.worker.local import run_local;"
        "from bestofn.service.core.settings import Settings;"
        "folder, model, judge = map(Path, sys.argv[1:]);"
        "engine = load_engine(Settings(model=str(model), judge=str(judge), threads=1, devices='cpu'));"
        "done = run_local(JobSpec.model_validate_json((folder / 'job.json').read_text()), engine);"
        "[(folder / f'{i}.png').write_bytes(data) for i, data in done.images.items()]"
    )
    # The process chooses its batch sizes for the CPU: so does this engine.
    subprocess.run([sys.executable, "-P", "-c", program, tmp_path, checkpoints["tiny"], JUDGE], check=True)
    reference = images(run(make(sizes_for("cpu")), job), "job")
    assert [(tmp_path / f"{i}.png").read_bytes() for i in (0, 1)] == [data for data, _ in reference.values()]


@pytest.mark.parametrize(("name", "guidance", "steps"), [("tiny", 4.5, 5), ("tiny", 1.0, 2), ("sprint", 4.5, 2)])
def test_the_engine_draws_what_the_plain_loop_draws(name, guidance, steps, checkpoints, spec):
    engine = load_engine(Settings(model=str(checkpoints[name]), judge=str(JUDGE), threads=1, devices="cpu"))
    job = spec("job", num_samples=3, guidance_scale=guidance, num_inference_steps=steps)
    job = job.model_copy(update={"model": engine.model_info.revision, "judge": engine.judge_info.revision})
    drawn = images(run(engine, job), "job")
    options = {"num_inference_steps": steps, "guidance_scale": guidance}
    plain = generate(engine.generator, job.prompt, [11, 12, 13], **options).numpy()
    for (data, _), pixels in zip(drawn.values(), plain, strict=True):
        ours = torch.frombuffer(bytearray(decode(data).tobytes()), dtype=torch.uint8).int()
        theirs = torch.from_numpy(pixels.copy()).flatten().int()
        assert ((ours - theirs).abs() <= 1).float().mean() >= 0.999


def test_usage_counts_rows_verdicts_and_work(make, spec):
    engine = make()
    guided, unguided = spec("guided", num_samples=5, heat_size=5), spec("unguided", num_samples=2, guidance_scale=0.5)
    events = run(engine, guided, unguided)
    usage = {event.job: event.outcome.usage for event in events if isinstance(event, HeatFinished)}
    flops = engine.generator.flops(32, 32)
    assert usage["guided"].transformer_forwards == 5 * 3 * 2
    assert usage["unguided"].transformer_forwards == 2 * 3
    assert usage["guided"].judge_forwards == usage["guided"].candidates == 5
    assert usage["guided"].tflops > (30 * flops.forward + 5 * flops.decode + 2 * flops.text) / 1e12
    assert set(usage["guided"].seconds) == {"text", "denoise", "decode", "judge", "encode"}
    assert "text" not in usage["unguided"].seconds, "the prompt was encoded once, for the other job"
    steps = Counter()
    for event in events:
        if isinstance(event, Stepped):
            steps[event.job] += event.steps
    assert steps == {"guided": 15, "unguided": 6}


@pytest.mark.parametrize("rule", Rule)
def test_a_heat_keeps_the_images_of_its_own_best(rule, make, spec):
    job = spec("job", num_samples=7, top_k=2, heat_size=5, rule=rule, thumbnails=True, format="webp")
    events = list(run(make(), job))
    outcomes = {event.outcome.heat: event.outcome for event in events if isinstance(event, HeatFinished)}
    assert sorted(outcomes) == [0, 1]
    thumbnails = {event.candidate.index: event.thumbnail for event in events if isinstance(event, Judged)}
    assert sorted(thumbnails) == list(range(7))
    assert all(data is not None and data[8:12] == b"WEBP" for data in thumbnails.values())
    for outcome in outcomes.values():
        best = [candidate.index for candidate in ranked(job, outcome.candidates)[:2]]
        assert sorted(outcome.images) == sorted(best)
        assert all(data[8:12] == b"WEBP" for data in outcome.images.values())
    assert [c.seed for c in outcomes[1].candidates] == [16, 17]


def test_drafts_choose_who_is_solved_in_full_from_the_same_noise(make, spec):
    full = spec("full", num_samples=9, heat_size=9, num_inference_steps=5)
    coarse = spec("coarse", num_samples=9, heat_size=9, num_inference_steps=2)
    draft = Draft(num_inference_steps=2, keep=0.25)
    drafted = full.model_copy(update={"id": "drafted", "draft": draft, "top_k": 2, "heat_size": 5})
    events = run(make(), drafted, spec("other", num_samples=4))
    whole, steps = images(run(make(), full), "full"), images(run(make(), coarse), "coarse")
    outcomes = [event.outcome for event in events if isinstance(event, HeatFinished) and event.job == "drafted"]
    candidates = [candidate for outcome in outcomes for candidate in outcome.candidates]
    assert {c.index: c.draft for c in candidates} == {i: verdict for i, (_, verdict) in steps.items()}
    for heat, count in ((0, 2), (1, 1)):
        of_heat = {c.index: c.draft for c in candidates if c.index in drafted.heat(heat).candidates}
        chosen = [c.index for c in candidates if c.solved_in_full and c.index in of_heat]
        assert chosen == promoted(drafted, of_heat)
        assert len(chosen) == count
    for index, (data, verdict) in images(events, "drafted").items():
        assert (decode(data).tobytes(), verdict) == (decode(whole[index][0]).tobytes(), whole[index][1])
    assert all(c.verdict == c.draft for c in candidates if not c.solved_in_full)
    steps_done = sum(event.steps for event in events if isinstance(event, Stepped) and event.job == "drafted")
    assert steps_done == drafted.total_steps == 9 * 2 + 3 * 5
    usage = sum((outcome.usage for outcome in outcomes), Usage())
    assert (usage.candidates, usage.transformer_forwards, usage.judge_forwards) == (9, 2 * drafted.total_steps, 9 + 3)


def test_each_job_is_drawn_by_its_own_blocks_of_the_same_weights(make, spec, loaded):
    half = spec("half", num_samples=5, layers=(1,))
    crowd = spec("crowd", num_samples=4, seed=12), spec("other", prompt="a cross", num_samples=2, layers=(0,), seed=5)
    events = run(make(), half, *crowd)
    for job in (half, *crowd):
        assert images(events, job.id) == images(run(make(), job), job.id)
    plain = generate(loaded.generator, half.prompt, range(11, 16), num_inference_steps=3, layers=[1]).numpy()
    whole = images(run(make(), spec("whole", num_samples=5)), "whole")
    for (data, _), other, pixels in zip(images(events, "half").values(), whole.values(), plain, strict=True):
        ours = torch.frombuffer(bytearray(decode(data).tobytes()), dtype=torch.uint8).int()
        assert ((ours - torch.from_numpy(pixels.copy()).flatten().int()).abs() <= 1).float().mean() >= 0.999
        assert decode(data).tobytes() != decode(other[0]).tobytes()
    flops = loaded.generator.flops(32, 32, 1), loaded.generator.flops(32, 32)
    used = {e.job: e.outcome.usage for e in events if isinstance(e, HeatFinished)}
    saved = used["crowd"].tflops / 4 - used["half"].tflops / 5  # but for the prompt's text, of which one paid
    assert saved * 1e12 == pytest.approx(6 * (flops[1].forward - flops[0].forward), abs=flops[0].text)
    with pytest.raises(ValueError, match="layer 2 does not exist: this engine"):
        make().admit(spec("deep", layers=(0, 2)).heat(0))


def test_drafts_of_fewer_blocks_choose_who_is_solved_in_full(make, spec):
    fields = {"num_samples": 7, "heat_size": 7, "num_inference_steps": 3}
    coarse = images(run(make(), spec("coarse", **fields, layers=(0,))), "coarse")
    whole = images(run(make(), spec("whole", **fields)), "whole")
    draft = Draft(num_inference_steps=3, keep=0.25, depth=1)
    drafted = spec("drafted", **fields, draft=draft, draft_layers=(0,)).model_copy(update={"top_k": 2})
    events = run(make(), drafted, spec("other", num_samples=4))
    (outcome,) = [event.outcome for event in events if isinstance(event, HeatFinished) and event.job == "drafted"]
    assert {c.index: c.draft for c in outcome.candidates} == {i: verdict for i, (_, verdict) in coarse.items()}
    solved_in_full = {c.index: c.verdict for c in outcome.candidates if c.solved_in_full}
    assert sorted(solved_in_full) == promoted(drafted, {i: verdict for i, (_, verdict) in coarse.items()})
    assert solved_in_full == {i: whole[i][1] for i in solved_in_full}


def test_fp8_drafts_choose_promoted_candidates_drawn_as_ever(make, spec):
    fields = {"num_samples": 7, "heat_size": 7, "num_inference_steps": 3, "top_k": 2}
    drafted = spec("drafted", **fields, draft=Draft(num_inference_steps=2, keep=0.25))
    outcomes = []
    for options in ({}, {"fp8_drafts": True}):
        events = run(make(**options), drafted, spec("other", num_samples=4))
        outcomes += [event.outcome for event in events if isinstance(event, HeatFinished) and event.job == "drafted"]
    exact, eight = ({c.index: c for c in outcome.candidates} for outcome in outcomes)
    assert all(eight[i].draft != exact[i].draft for i in range(7))
    whole = images(run(make(), spec("whole", **fields | {"top_k": 7})), "whole")
    for index, data in outcomes[1].images.items():
        assert decode(data).tobytes() == decode(whole[index][0]).tobytes()


def test_a_cancelled_job_is_gone_before_the_next_tick_and_its_slots_are_refilled(make, spec):
    engine = make()
    doomed, other = spec("doomed", num_samples=20, heat_size=10), spec("other", num_samples=3)
    for job in (doomed, other):
        for heat in job.heats():
            engine.admit(heat)
    engine.tick()
    engine.cancel("doomed")
    events = run(engine)
    assert {event.job for event in events} == {"other"}
    assert images(events, "other") == images(run(make(), other), "other")
    for heat in doomed.heats():  # cancelled is not banned
        engine.admit(heat)
    assert len(images(run(engine), "doomed")) == 20


def test_engine_size_that_no_job_draws_takes_no_memory(make, spec):
    def alive():
        return sum(type(one) is SlotGroup for one in gc.get_objects())

    gc.collect()
    engine, before = make(), alive()
    for number, (width, height) in enumerate([(32, 32), (64, 32), (32, 64), (64, 64), (96, 32), (32, 32)]):
        events = run(engine, spec(f"job-{number}", width=width, height=height))
        assert len(images(events, f"job-{number}")) == 1
    assert alive() - before == 1 + IDLE_GROUPS


def test_recordings_of_the_own_size_and_of_those_used_last_are_kept(make, spec):
    made = []

    def record(work, device, pool):
        made.append(work)
        return work

    engine = make(record=record)
    own, others = (32, 32), [(64, 32), (32, 64), (64, 64), (96, 32)]
    for number, (width, height) in enumerate([own, *others, own, others[-1], own]):
        if number == len(others) + 1:
            first = len(made)
        run(engine, spec(f"job-{number}", width=width, height=height))
    assert first == 1 + len(others)
    assert len(made) == first, "going back to a size that is kept records nothing"


def test_refill_leaves_no_slot_empty_while_candidates_wait(make, spec):
    engine = make()
    jobs = [spec("a", num_samples=8, num_inference_steps=2), spec("b", num_samples=8, num_inference_steps=5)]
    for job in jobs:
        for heat in job.heats():
            engine.admit(heat)
    busy = []
    while engine.busy:
        busy.append(sum(event.steps for event in engine.tick() if isinstance(event, Stepped)))
    assert sum(busy) == 8 * 2 + 8 * 5
    assert busy[: len(busy) - 5] == [6] * (len(busy) - 5), "only the last candidates run in an emptying batch"


class Late(SideStream):
    """A second queue as a GPU's: what was given to it is read in the next tick."""

    late = True


class Calls(TorchDispatchMode):
    """Every operator that is called, with its tensors."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.made.append((operator, args, kwargs or {}, result))
        return result


class Replayed:
    """As a CUDA graph: after a plain call and one whose operators are noted, these alone are called, on the same
    tensors, whatever has become of everything that is no tensor."""

    replays = 0

    def __init__(self, work, device, pool=None):
        self._work, self._calls, self._plain = work, None, True

    def __call__(self):
        if self._plain:
            self._plain = False
            return self._work()
        if self._calls is None:
            with torch.inference_mode(), Calls() as calls:
                self._work()
            self._calls = calls.made
            return None
        Replayed.replays += 1
        now = {}

        def current(old):
            return now.get(id(old), old)

        with torch.inference_mode():
            for operator, args, kwargs, then in self._calls:
                args, kwargs = tree_map_only(torch.Tensor, current, (args, kwargs))
                result = operator(*args, **kwargs)
                now.update((id(old), new) for old, new in zip(tree_leaves(then), tree_leaves(result), strict=True))


@pytest.mark.parametrize("late", [False, True], ids=["at once", "a tick later, as on a GPU"])
def test_engine_judges_sent_images_at_their_own_size_among_drawn_ones(make, spec, loaded, late):
    rng = np.random.default_rng(5)
    sizes = [(32, 32), (96, 32), (33, 31), (40, 90), (300, 20)]
    arrays = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]
    files = {i: encode(pixels, "png") for i, pixels in enumerate(arrays)}
    judge = loaded._judge.get()
    assert len({judge.tiles(*size) for size in sizes}) > 1
    fields = {"num_inference_steps": 0, "seed": 0, "width": 0, "height": 0, "guidance_scale": 0.0}
    sent = [SentImage(format="png", size=len(data)) for data in files.values()]
    job = spec("r", num_samples=5, heat_size=5, top_k=2, thumbnails=True, sent=sent, **fields)
    engine = make(side_stream=Late(loaded.generator.device, one_queue=True) if late else None)
    engine.admit(replace(job.heat(0), images=files))
    engine.admit(replace(job.model_copy(update={"id": "canceled"}).heat(0), images=files))
    engine.cancel("canceled")
    events = run(engine, spec("d", num_samples=3, prompt=job.prompt))
    assert {event.job for event in events} == {"r", "d"}
    assert sum(event.thumbnail is not None for event in events if isinstance(event, Judged)) == 5
    (outcome,) = (event.outcome for event in events if isinstance(event, HeatFinished) and event.job == "r")
    for candidate, pixels in zip(outcome.candidates, arrays, strict=True):
        (alone,) = judge.judge([pixels], [job.prompt])
        assert candidate.verdict.answer == alone.answer
        assert candidate.verdict.margin == pytest.approx(alone.margin, abs=1e-3)
    assert len(outcome.images) == 2
    assert all(outcome.images[index] == files[index] for index in outcome.images)


@pytest.mark.parametrize("strict", [True, False])
def test_forwards_are_replayed_and_results_read_a_tick_later_as_on_a_gpu(strict, make, spec, loaded):
    sizes = Sizes(slots=6, strict=strict, rows=4 if strict else 12, decode=4, judge=3)
    jobs = [
        spec("job", num_samples=11, num_inference_steps=4, thumbnails=True),
        spec("other", prompt="a cross", num_samples=5, guidance_scale=1.0, seed=2),
        spec("wide", prompt="two blue rings", num_samples=2, width=64, negative_prompt="grey"),
        spec("shallow", num_samples=5, num_inference_steps=4, layers=(1,)),
    ]
    late = Late(loaded.generator.device, one_queue=True)
    Replayed.replays = 0
    events, plain = run(make(sizes, side_stream=late, record=Replayed), *jobs), run(make(sizes), *jobs)
    assert Replayed.replays > 5
    for job in jobs:
        assert images(events, job.id) == images(plain, job.id)
        small, smaller = (
            {e.candidate.index: e.thumbnail for e in told if isinstance(e, Judged)} for told in (events, plain)
        )
        assert small == smaller
        ours, theirs = (
            [e.outcome.usage for e in told if isinstance(e, HeatFinished) and e.job == job.id]
            for told in (events, plain)
        )
        assert [u.transformer_forwards for u in ours] == [u.transformer_forwards for u in theirs]
        assert [u.seconds.keys() for u in ours] == [u.seconds.keys() for u in theirs]


def test_engine_late_work_of_a_canceled_heat_is_not_taken_for_a_new_one(make, spec, loaded):
    engine = make(side_stream=Late(loaded.generator.device, one_queue=True))
    job, anew = (spec("job", num_samples=3, num_inference_steps=1, seed=seed) for seed in (11, 99))
    reference = images(run(make(), anew), "job")
    for ticks in (1, 2):  # decoding and judging are under way
        engine.admit(job.heat(0))
        for _ in range(ticks):
            engine.tick()
        engine.cancel("job")
        assert images(run(engine, anew), "job") == reference


def test_room_and_refusals(make, spec, loaded):
    engine = make()
    assert (engine.slots, engine.room(), engine.busy) == (6, 12, False)
    job = spec("job", num_samples=4)
    engine.admit(job.heat(0))
    assert (engine.room(), engine.busy) == (8, True)
    with pytest.raises(ValueError, match="held already"):
        engine.admit(job.heat(0))
    other = loaded.model_info.revision.model_copy(update={"revision": "another"})
    with pytest.raises(ValueError, match=r"this engine holds .* asks for .*@another"):
        engine.admit(spec("other", model=other).heat(0))
    with pytest.raises(ValueError, match="multiples of 32"):
        engine.admit(spec("odd", width=40).heat(0))


def test_a_prompt_that_cannot_be_read_fails_its_own_heat_only(make, spec):
    long, good = spec("long", prompt="word " * 99, num_samples=3), spec("good", num_samples=2)
    events = run(make(), long, good)
    assert [(event.job, event.heat) for event in events if isinstance(event, HeatFailed)] == [("long", 0)]
    assert next(event.reason for event in events if isinstance(event, HeatFailed)).startswith("the prompt has ")
    assert len(images(events, "good")) == 2


class CrampedGenerator(Generator):
    """Memory for so many rows in a forward and so many images in a decode, no more."""

    rows = images = 1000
    failures = 0  # of forwards

    def output(self, x, *rest, **options):
        if len(x) > self.rows:
            self.failures += 1
            raise MemoryError(f"{len(x)} rows")
        return super().output(x, *rest, **options)

    def decode(self, latents, **options):
        if len(latents) > self.images:
            raise torch.OutOfMemoryError(f"{len(latents)} images")
        return super().decode(latents, **options)


class CrampedJudge(Judge):
    """Memory for one image at a time."""

    def ask(self, images, prompts, **options):
        if len(images) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
        return super().ask(images, prompts, **options)


def test_a_failed_allocation_halves_the_batch_and_is_said(make, spec, checkpoints):
    generator = CrampedGenerator.load(str(checkpoints["tiny"]))
    generator.rows, generator.images = 1, 2
    engine = make(generator=generator, judge=CrampedJudge.load(JUDGE))
    job = spec("job", num_samples=5)
    events = run(engine, job)
    outcome = next(event.outcome for event in events if isinstance(event, HeatFinished))
    assert len(outcome.images) == 5
    said = " ".join(outcome.warnings)
    assert "denoising ran in batches of 1 rows instead of 4" in said
    assert "decoding ran in batches of 2 instead of 4" in said
    assert "judging ran in batches of 1 instead of 3" in said
    reference = images(run(make(), job), "job")
    for (_, verdict), (_, other) in zip(images(events, "job").values(), reference.values(), strict=True):
        assert verdict.yes_logit == pytest.approx(other.yes_logit, abs=1e-2)


@pytest.mark.parametrize(("what", "word"), [("rows", "denoising"), ("images", "decoding")])
def test_engine_candidate_too_large_for_memory_fails_with_the_reason_and_others_go_on(
    what, word, make, spec, checkpoints
):
    generator = CrampedGenerator.load(str(checkpoints["tiny"]))
    engine = make(generator=generator)
    setattr(generator, what, 0)
    failed = [event for event in run(engine, spec("job", num_samples=3)) if isinstance(event, HeatFailed)]
    assert [(event.job, event.heat) for event in failed] == [("job", 0)]
    assert failed[0].reason.startswith(f"{word} ")
    assert "needs more memory than is free" in failed[0].reason
    setattr(generator, what, 1000)
    assert len(images(run(engine, spec("next", num_samples=2)), "next")) == 2


class FullGenerator(Generator):
    """Memory in which an image can be decoded only with the text encoder gone and forwards of at most so many rows."""

    most_rows = 1000
    rows = 0  # of the last forward
    log: tuple[str, ...] = ()

    def output(self, x, *rest, **options):
        self.rows = len(x)
        return super().output(x, *rest, **options)

    def decode(self, latents, **options):
        if len(latents) > 1 or "text_encoder" in self._parts or self.rows > self.most_rows:
            self.log += (
                f"{len(latents)} images, {'with' if 'text_encoder' in self._parts else 'without'} the encoder",
            )
            raise torch.OutOfMemoryError("decoding")
        return super().decode(latents, **options)


def test_decoding_that_runs_out_of_memory_frees_the_text_encoder(make, spec, checkpoints):
    generator = FullGenerator.load(str(checkpoints["tiny"]))
    engine = make(Sizes(slots=6, strict=False, rows=12, decode=2, judge=3), generator)
    job = spec("job", num_samples=5)
    assert images(run(engine, job), "job").keys() == set(range(5))
    assert generator.log == ("2 images, with the encoder",) * 2 + ("1 images, with the encoder",) * 6
    assert all(slots.shrunk is None for slots in engine._groups.values()), "rows are the last that give way"
    assert len(images(run(engine, spec("next", prompt="a cross")), "next")) == 1, "the encoder comes back for a prompt"


def test_decoding_that_still_does_not_fit_frees_idle_groups_halves_rows_once_and_fails(make, spec, checkpoints):
    generator = FullGenerator.load(str(checkpoints["tiny"]))
    engine = make(Sizes(slots=6, strict=False, rows=12, decode=1, judge=3), generator)
    for number in range(2):  # the encoder gives way for the first, and its prompt is known for the second
        run(engine, spec(f"wide-{number}", width=64))
    assert Group(64, 32) in engine._groups
    generator.most_rows = -1
    for number in range(2):
        [failed] = [e for e in run(engine, spec(f"job-{number}", num_samples=1)) if isinstance(e, HeatFailed)]
        assert failed.reason.startswith("decoding one image of 32x32 pixels needs more memory than is free")
        assert {group: slots.most_rows for group, slots in engine._groups.items()} == {Group(32, 32): 6}


class OverflowingGenerator(Generator):
    """Some candidates' numbers overflow, as in half precision, or their images show nothing."""

    overflowing: frozenset[int] | set[int] = frozenset()
    flat: frozenset[int] | set[int] = frozenset()
    decoded = 0

    def decode(self, latents, **options):
        images = super().decode(latents, **options).clone()
        for image in images:
            if self.decoded in self.flat:
                image.fill_(7)
            self.decoded += 1
        return images

    def noise(self, seed, *size, **options):
        drawn = super().noise(seed, *size, **options)
        return drawn * float("inf") if seed - 11 in self.overflowing else drawn


@pytest.mark.parametrize("draft", [None, {"num_inference_steps": 1, "keep": 1.0}])
def test_engine_with_candidates_that_overflow_ranks_them_last(make, spec, checkpoints, draft):
    generator = OverflowingGenerator.load(str(checkpoints["tiny"]))
    generator.overflowing, generator.flat = {1, 3}, {4} if draft is None else set()
    (outcome,) = [
        event.outcome
        for event in run(make(generator=generator), spec("job", num_samples=5, draft=draft, top_k=2))
        if isinstance(event, HeatFinished)
    ]
    broken = [candidate.index for candidate in outcome.candidates if candidate.verdict.broken]
    assert broken == sorted(generator.overflowing | generator.flat)
    assert outcome.images.keys().isdisjoint(broken)
    assert "denoising gave numbers that are not finite for candidate 3: it ranks last" in outcome.warnings
    assert ("decoding gave an image of one colour for candidate 4: it ranks last" in outcome.warnings) is (
        draft is None
    )
    assert unpack_heat(spec("job", num_samples=5, draft=draft), 0, pack_heat(outcome)).candidates[3].verdict.broken


def test_engine_with_nothing_but_overflows_fails_for_good_and_names_the_stage(make, spec, checkpoints):
    generator = OverflowingGenerator.load(str(checkpoints["tiny"]))
    generator.overflowing = set(range(3))
    failed = [
        event for event in run(make(generator=generator), spec("job", num_samples=3)) if isinstance(event, HeatFailed)
    ]
    reason = "denoising gave numbers that are not finite, for all candidates: try another dtype or model"
    assert failed == [HeatFailed("job", 0, reason, final=True)]
    generator.overflowing = set()
    assert len(images(run(make(generator=generator), spec("next", num_samples=2)), "next")) == 2


def test_engine_whose_certificate_expired_fails_heats_for_good_until_the_files_are_renewed(make, spec, tmp_path):
    pytest.importorskip("c2pa", reason="needs c2pa-python: pip install -e '.[provenance]'")
    files = write_certificate(tmp_path, lifetime=timedelta(seconds=-60))
    engine = make(signer=Signer(*(file.read_bytes() for file in files), files))
    for job in ("job", "next"):
        [failed] = [event for event in run(engine, spec(job, num_samples=2)) if isinstance(event, HeatFailed)]
        assert (failed.job, failed.final, engine.busy) == (job, True, False)
        assert re.search(r"C2PA certificate .*/c2pa.pem expired on 20.*: put a new one there", failed.reason)
    for new, file in zip(write_certificate(tmp_path / "new"), files, strict=True):
        new.replace(file)
    [(image, _), *_] = images(run(engine, spec("renewed", num_samples=2)), "renewed").values()
    assert read_provenance(image).state == "Valid"


class CrampedMemory(TorchDispatchMode):
    """Memory for buffers of latents of so many numbers, no more."""

    def __init__(self, most):
        super().__init__()
        self.most, self.failures = most, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        buffers = function in (torch.ops.aten.zeros.default, torch.ops.aten.new_zeros.default)
        if buffers and len(arguments[-1]) == 4 and torch.Size(arguments[-1]).numel() > self.most:
            self.failures += 1
            raise torch.OutOfMemoryError(f"buffers of {arguments[-1]}")
        return function(*arguments, **(options or {}))


def test_warm_up_that_runs_out_of_memory_leaves_recordings_that_fit(make, spec, checkpoints):
    generator = CrampedGenerator.load(str(checkpoints["tiny"]))
    generator.rows, made = 5, []

    def record(work, device, pool):
        made.append(work)
        return work

    engine = make(Sizes(slots=6, strict=False, rows=12, decode=4, judge=3), generator, record=record)
    group = Group(32, 32)
    engine._groups.open(group, *engine._prompts.get([("", True)]))
    engine._groups[group].warm_up()
    assert (engine._groups[group].most_rows, generator.failures) == (3, 2)
    warmed = len(made)
    assert len(images(run(engine, spec("job", num_samples=1)), "job")) == 1
    assert (generator.failures, len(made)) == (2, warmed)
    generator.rows = 0
    with pytest.raises(MemoryError, match="a single row does not fit"):
        engine._groups[group].warm_up()


class CountingGenerator(Generator):
    """Notes the rows of each forward, and the prompts that it reads."""

    def output(self, x, at, context, *rest, **options):
        assert len(context) == len(x)
        self.forwards = [*getattr(self, "forwards", []), (len(x), context.keys.shape[1])]
        return super().output(x, at, context, *rest, **options)


def test_rows_that_a_finished_job_leaves_are_not_computed(make, spec, checkpoints):
    generator = CountingGenerator.load(str(checkpoints["tiny"]))
    engine = make(Sizes(slots=12, strict=False, rows=24, decode=4, judge=3), generator)
    run(engine, spec("short", num_samples=8, num_inference_steps=2), spec("long", num_samples=4))
    assert generator.forwards == [(24, STEP)] * 2 + [(8, STEP)]


class CrowdedGenerator(Generator):
    """Memory for the recordings of one size only."""

    groups: tuple[Group, ...] | dict[Group, SlotGroup] = ()

    def output(self, x, *rest, **options):
        if len(self.groups) > 1:
            raise torch.OutOfMemoryError("forward")
        return super().output(x, *rest, **options)


def test_idle_sizes_give_their_memory_before_forwards_get_smaller(make, spec, checkpoints):
    generator = CrowdedGenerator.load(str(checkpoints["tiny"]))
    engine = make(Sizes(slots=6, strict=False, rows=12, decode=4, judge=3), generator)
    generator.groups = engine._groups
    for number, width in enumerate((64, 96, 64)):
        events = run(engine, spec(f"job-{number}", num_samples=2, width=width))
        [outcome] = [event.outcome for event in events if isinstance(event, HeatFinished)]
        assert not outcome.warnings
        assert list(engine._groups) == [Group(width, 32)]


def test_a_model_whose_guidance_is_an_input_has_one_row_a_slot(make, spec, checkpoints):
    generator = CountingGenerator.load(str(checkpoints["sprint"]))
    engine = make(Sizes(slots=6, strict=False, rows=12, decode=4, judge=3), generator)
    assert len(images(run(engine, spec("job", num_samples=6, num_inference_steps=2)), "job")) == 6
    assert generator.forwards == [(6, STEP)] * 2


def test_small_images_are_made_by_other_threads_before_a_heat_is_done(make, spec):
    engine = make()
    engine.admit(spec("job", num_samples=9, heat_size=9, thumbnails=True).heat(0))
    events = []
    while not any(isinstance(event, Judged) for event in events):
        events = engine.tick()
    assert {len(event.thumbnail or b"") > 0 for event in events if isinstance(event, Judged)} == {True}
    assert not any(isinstance(event, HeatFinished) for event in events)
    assert engine._encoder._threads


def test_rows_of_one_prompt_share_its_keys_and_values(make, spec, checkpoints):
    generator = CountingGenerator.load(str(checkpoints["tiny"]))
    engine = make(Sizes(slots=12, strict=True, rows=4, decode=4, judge=3), generator)
    jobs = [spec(f"job-{i}", prompt=f"{i} stars", num_samples=1, seed=i) for i in range(STEP + 2)]
    events = run(engine, *jobs)
    assert {prompts for _, prompts in generator.forwards} == {2 * STEP}, (
        "as many prompts as are drawn, and the empty one"
    )
    for job in jobs:
        assert images(events, job.id) == images(run(make(), job), job.id)


def test_microbatch_remembers_what_memory_sufficed_for_by_size(make, spec, checkpoints, loaded):
    sizes = [(32, 32), (64, 32), (32, 32), (64, 32)]
    jobs = [spec(f"job-{i}", num_samples=5, width=w, height=h) for i, (w, h) in enumerate(sizes)]
    whole = run(make(), *jobs)

    def drawn(engine):
        events = [event for job in jobs for event in run(engine, job)]
        for job in jobs:
            here, there = images(events, job.id), images(whole, job.id)
            assert here.keys() == there.keys() == set(range(5))
            for (_, verdict), (_, other) in zip(here.values(), there.values(), strict=True):
                assert verdict.yes_logit == pytest.approx(other.yes_logit, abs=1e-2)
        return [event.outcome for event in events if isinstance(event, HeatFinished)]

    generator = CrampedGenerator.load(str(checkpoints["tiny"]))
    generator.rows = 2
    for outcome in drawn(make(generator=generator)):
        assert "denoising ran in batches of 2 rows instead of 4" in " ".join(outcome.warnings)
    assert generator.failures == 2 * 3  # once a size, the forwards of three lanes

    wide = torch.Size(loaded.generator.latent_shape(64, 32)).numel()
    with CrampedMemory(6 * wide) as memory:  # of the wide ones three slots with guidance, not six
        drawn(make(Sizes(slots=6, strict=False, rows=12, decode=4, judge=3)))
    assert memory.failures == 1


def test_a_size_of_which_not_one_slot_fits_fails_in_plain_words_and_the_engine_lives(make, spec):
    engine = make()
    with CrampedMemory(0):
        failed = run(engine, spec("job", num_samples=3), spec("other", num_samples=1))
    reason = "denoising an image of 32x32 pixels needs more memory than is free"
    assert [(event.job, event.reason) for event in failed] == [("job", reason), ("other", reason)]
    assert len(images(run(engine, spec("next", num_samples=2)), "next")) == 2


def test_generator_and_judge_take_turns_where_memory_is_short(loaded, spec, checkpoints):
    generator = Generator.load(str(checkpoints["tiny"]))
    loads = []

    def load():
        loads.append(sorted(generator._parts))
        return Judge.load(JUDGE)

    held = []

    def watched():
        judge = load()
        held.append(weakref.ref(judge.model))
        return judge

    residence = JudgeResidency([watched], generator, shared=False)
    engine = Engine(generator, residence, loaded.model_info, loaded.judge_info, loaded.tokenizer_files, SIZES)
    job = spec("job", num_samples=2)
    assert len(images(run(engine, job), "job")) == 2
    assert loads == [[]], "the judge came when the generator's parts had left"
    residence.offload()
    gc.collect()
    assert held[0]() is None, "the judge's weights are gone"


def test_encoded_images_are_those_that_were_judged(make, spec, loaded):
    job = spec("job", num_samples=2)
    events = run(make(), job)
    for candidate, (data, verdict) in images(events, "job").items():
        image = decode(data)
        story = Story.of(job, Candidate(candidate, job.seed + candidate, verdict))
        assert encode(image, "png", story) == data
        again = loaded._judge.get().judge([image], [job.prompt])[0]
        assert again.yes_logit == pytest.approx(verdict.yes_logit, abs=1e-3), candidate
    assert [e.candidate.index for e in events if isinstance(e, Judged)] == [0, 1]
