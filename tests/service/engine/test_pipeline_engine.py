"""The engine of diffusers' pipelines: each candidate is plain diffusers' own image, and trouble stays with its heat."""

import asyncio
import inspect
import json
import os
import shutil
import signal
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from safetensors.torch import load_file, save_file

from bestofn.evaluation.cost import counted
from bestofn.evaluation.run import EvaluationRun
from bestofn.evaluation.strategies import Strategy
from bestofn.evaluation.tasks import Task
from bestofn.models.checkpoint import Checkpoint, quantised_with
from bestofn.models.errors import CheckpointError, ModelError
from bestofn.models.pipelines.family import Family
from bestofn.models.pipelines.generator import PipelineGenerator
from bestofn.models.pipelines.tasks import other_task
from bestofn.models.sampling import default_size, generate
from bestofn.service.core.errors import InvalidRequest, SetupError
from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.results import assemble
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.checkpoints import checkpoints, memory
from bestofn.service.doctor.weights.check import check, check_files
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.loader import load_engine
from bestofn.service.engine.pipeline_engine import PipelineEngine
from bestofn.service.engine.protocol import HeatFailed, HeatFinished, Judged, Stepped
from bestofn.service.engine.stepwise import Stepwise
from bestofn.service.media.codec import decode, thumbnail
from bestofn.service.media.metadata import read_story
from bestofn.service.media.reproduce import diffusers_call
from bestofn.service.queue.job_queue import Queue
from bestofn.service.worker.local import local_spec, run_local
from bestofn.service.worker.worker import Worker
from tests.tiny_pipelines import FAMILIES, make_pipeline
from tests.waiting import events_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # diffusers' own
)
JUDGE = Path(__file__).parents[2] / "fixtures" / "vila" / "checkpoint"
PROMPT, SEED, STEPS = "a photo of a red star", 2**40 + 7, 3
SIZE = {"width": 40, "height": 32}
FAST = Sizes(slots=4, strict=False, rows=8, decode=8, judge=8)
CLASSES = {
    "flux": "FluxPipeline",
    "qwen": "QwenImagePipeline",
    "turbo": "ZImagePipeline",
    "klein": "Flux2KleinPipeline",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a family's checkpoint, each made once."""

    @cache
    def folder(family):
        made = make_pipeline(family.removesuffix("_short"), tmp_path_factory.mktemp("pipelines") / family)
        if family.endswith("_short"):
            (made / "bestofn.json").write_text(json.dumps({"max_sequence_length": 16}))
        return made

    return folder


@pytest.fixture(scope="module")
def settings_of(folders):
    return lambda family, **fields: Settings(
        model=str(folders(family)), judge=str(JUDGE), threads=1, devices="cpu", **fields
    )


@pytest.fixture(scope="module")
def engines(settings_of):
    """A family's engine, each loaded once."""
    return cache(lambda family: load_engine(settings_of(family)))


@pytest.fixture(scope="module")
def plain(folders):
    """The image of one call of plain diffusers with one generator."""
    loaded = cache(lambda family: diffusers.DiffusionPipeline.from_pretrained(folders(family), dtype=torch.float32))

    def draw(family, seed, steps=STEPS, **options):
        pipe = loaded(family)
        pipe.set_progress_bar_config(disable=True)
        if family == "pixart":
            options |= {"use_resolution_binning": False, "clean_caption": False}
        generator = torch.Generator("cpu").manual_seed(seed)
        return np.asarray(pipe(PROMPT, num_inference_steps=steps, generator=generator, **(SIZE | options)).images[0])

    return draw


@pytest.fixture
def spec(engines, settings_of):
    def spec(family, id="job", **fields):
        request = {"prompt": PROMPT, "seed": SEED, "num_samples": 2, "top_k": 1, "num_inference_steps": STEPS} | SIZE
        job = local_spec(GenerateRequest(**(request | fields)), engines(family), settings_of(family))
        return job.model_copy(update={"id": id})

    return spec


def run(engine, *jobs):
    for job in jobs:
        for heat in job.heats():
            engine.admit(heat)
    events = []
    while engine.busy:
        events += engine.tick()
    return events


def outcome_of(events, job="job"):
    return next(event.outcome for event in events if isinstance(event, HeatFinished) and event.job == job)


def images(events, job="job"):
    return {index: np.asarray(decode(data)) for index, data in outcome_of(events, job).images.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_engine_candidates_equal_plain_diffusers_drafts_included(family, engines, plain, spec):
    engine = engines(family)
    assert engine.sizes.strict
    negative = {"negative_prompt": "grey"} if engine.generator.family.reads_negative else {}
    draft = {"num_inference_steps": 1, "keep": 0.5}
    events = run(engine, spec(family, draft=draft, thumbnails=True, **negative))

    drafts = {event.candidate.index: event for event in events if isinstance(event, Judged)}
    winner = outcome_of(events).candidates
    solved = [candidate.index for candidate in winner if candidate.solved_in_full]
    (index,), found = solved, images(events)
    assert np.array_equal(found[index], plain(family, SEED + index, **negative))
    shown = {index: decode(event.thumbnail) for index, event in drafts.items() if index not in solved}
    for index, small in shown.items():
        first = thumbnail(plain(family, SEED + index, steps=1, **negative))
        assert np.array_equal(np.asarray(small), np.asarray(decode(first)))
    assert found[solved[0]].std() > 5

    rows = 2 if engine.generator.family.reads_negative else 1
    stepped = [event for event in events if isinstance(event, Stepped)]
    assert sum(event.steps for event in stepped) == 2 * 1 + STEPS
    assert outcome_of(events).usage.transformer_forwards == rows * (2 * 1 + STEPS)
    assert outcome_of(events).usage.tflops > 0


@pytest.mark.parametrize("family", [*FAMILIES, "flux_short"])
def test_diffusers_call_of_a_winner_run_as_printed_draws_it(family, engines, folders, spec, monkeypatch):
    monkeypatch.chdir(folders(family).parent)  # a file names a folder without its path
    negative = {"negative_prompt": "grey"} if family in ("pixart", "sdxl") else {}
    (data,) = outcome_of(run(engines(family), spec(family, guidance_scale=2.5, **negative))).images.values()
    names = {}
    exec(diffusers_call(read_story(data)), names)
    assert type(names["pipeline"]).__name__ == engines(family).generator.family.name
    assert np.array_equal(np.asarray(names["image"]), np.asarray(decode(data)))


def test_pipeline_engine_cancel_in_flight_ends_the_call_and_frees_the_engine(engines, plain, spec):
    engine = engines("flux")
    for heat in spec("flux", id="long", num_inference_steps=50).heats():
        engine.admit(heat)
    steps = 0
    while steps < 2:
        steps += sum(event.steps for event in engine.tick() if isinstance(event, Stepped))
    engine.cancel("long")
    assert engine.tick() == []
    assert not engine.busy
    found = images(run(engine, spec("flux", num_samples=1)))
    assert np.array_equal(found[0], plain("flux", SEED))


def test_pipeline_engine_out_of_memory_halves_batches_and_remembers(engines, plain, spec):
    loaded = engines("sdxl")
    announced = loaded.model_info, loaded.judge_info, loaded.tokenizer_files
    engine = PipelineEngine(loaded.generator, loaded._judge, *announced, FAST)
    rows = []

    def small(module, args, options=None):
        rows.append(len(args[0]))
        if len(args[0]) > 4:  # with guidance: two candidates
            raise torch.OutOfMemoryError("too large a batch")

    with loaded.generator.pipe.unet.register_forward_pre_hook(small):
        events = run(engine, spec("sdxl", num_samples=4, top_k=4))
        assert rows[0] == 8
        assert rows[1:] == [4] * 2 * STEPS
        rows.clear()
        run(engine, spec("sdxl", num_samples=4, top_k=4))
        assert set(rows) == {4}
    assert engine.batch_size((40, 32)) == 2
    assert sum(event.steps for event in events if isinstance(event, Stepped)) == 4 * STEPS
    assert "batches of 2 instead of 4" in outcome_of(events).warnings[0]
    for index, image in images(events).items():
        assert np.abs(image.astype(int) - plain("sdxl", SEED + index)).max() <= 1

    def none(module, args):
        raise torch.OutOfMemoryError("too large a batch")

    with loaded.generator.pipe.unet.register_forward_pre_hook(none):
        (failed,) = run(engine, spec("sdxl", num_samples=2))
    assert isinstance(failed, HeatFailed)
    assert "40x32 pixels needs more memory" in failed.reason


def test_pipeline_engine_heat_that_the_family_refuses_fails_alone(engines, spec):
    engine = engines("z_image")
    heat = next(iter(spec("z_image", id="odd").heats()))
    with pytest.raises(ValueError, match="multiples of 4, got 30x32"):
        engine.admit(replace(heat, job=heat.job.model_copy(update={"width": 30})))
    scale = engine.generator.pipe.vae_scale_factor
    engine.generator.pipe.vae_scale_factor = 8  # a family may refuse more than the multiple says
    engine.admit(heat)
    (failed,) = run(engine)
    engine.generator.pipe.vae_scale_factor = scale
    assert isinstance(failed, HeatFailed)
    assert failed.final
    assert "divisible by 16" in failed.reason
    assert len(outcome_of(run(engine, spec("z_image"))).candidates) == 2


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"depth": 2}, "depth", "StableDiffusion3Pipeline runs all its layers; leave it out"),
        ({"draft": {"num_inference_steps": 1, "depth": 1}}, "draft.depth", "leave it out"),
        ({"width": 34}, "width", "multiple of 4 from 32"),
        ({"prompt": "star " * 300}, "prompt", "reads 256"),
    ],
)
def test_pipeline_info_request_of_what_is_not_offered_names_the_field(fields, field, said, spec):
    with pytest.raises(InvalidRequest, match=said) as refused:
        spec("sd3", **fields)
    assert refused.value.field == field


def test_generate_with_a_pipeline_equals_plain_diffusers(engines, plain):
    generator = engines("sdxl").generator  # as an evaluation draws
    generator.release()
    encoded = []
    with generator.pipe.text_encoder.register_forward_hook(lambda *call: encoded.append(1)):
        drawn = generate(generator, PROMPT, [SEED, SEED + 1], num_inference_steps=STEPS, **SIZE).numpy()
    assert len(encoded) == 1  # for both images; the negative prompt of this family is zeros
    assert [np.array_equal(image, plain("sdxl", SEED + i)) for i, image in enumerate(drawn)] == [True, True]
    price = counted(generator, engines("sdxl")._judge.get())
    assert price.step > 0
    with pytest.raises(ModelError, match="neither previews nor depths"):
        generate(generator, PROMPT, [SEED], preview_after=1)


@pytest.mark.parametrize("family", ["sdxl", "z_image"])
def test_doctor_names_what_the_family_has(family, settings_of, folders):
    found = {finding.what: finding for finding in (*checkpoints(settings_of(family)), *memory(settings_of(family)))}
    steps = "50 steps, guidance_scale 5, negative prompts; progress and cancel after each step"
    assert steps in found["pipeline"].found
    assert found["memory"].state == "ok"
    assert [one.state for one in check_files(folders(family))] == ["ok"] * (4 if family == "sdxl" else 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_size_is_known_without_weights(family, engines, folders):
    checkpoint, loaded = Checkpoint.resolve(str(folders(family)), any_pipeline=True), engines(family).generator.defaults
    assert default_size(checkpoint) == (loaded.width, loaded.height)


def test_evaluation_refuses_previews_of_a_pipeline_before_any_is_drawn(folders, tmp_path):
    tasks = (Task(PROMPT, "", SEED),)
    evaluation = EvaluationRun.of(str(folders("pixart")), "shapes", "cpu", tasks, tmp_path)
    evaluation.check([0], [Strategy(4)])
    with pytest.raises(ValueError, match="PixArtSigmaPipeline has no previews: leave out the strategy n=4 preview=2:0"):
        evaluation.check([0], [Strategy(4), Strategy.parse("n=4 preview=2:0.25")])


def test_flops_of_another_size_equal_a_count_of_it(engines):
    generator = engines("pixart").generator
    side = 32 * generator.defaults.size_multiple
    (first, second), _ = generator._counted(side, 2)
    counted = (second - first) // 2
    assert generator.flops(side, side).forward == pytest.approx(counted, rel=0.01)


def test_family_guidance_is_the_scale_that_the_defaults_use(tmp_path):
    def family(name, **given):
        parts = inspect.signature(getattr(diffusers, CLASSES[name]).__init__).parameters
        index = {part: ["diffusers", "Any"] for part in parts if part != "self"}
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": CLASSES[name], **index}))
        (tmp_path / "bestofn.json").write_text(json.dumps(given))
        return Family.of(Checkpoint(name, tmp_path, "1"))

    def shown(one):
        return one.guidance, one.guidance_scale, one.reads_negative

    assert shown(family("flux")) == ("guidance_scale", 3.5, False)  # an input of the distilled network
    assert shown(family("qwen")) == ("true_cfg_scale", 4.0, True)
    assert shown(family("klein")) == ("guidance_scale", 4.0, False)
    turbo = family("turbo", num_inference_steps=9, guidance_scale=0.0, width=512)
    assert shown(turbo) == ("guidance_scale", 0.0, True)
    assert (turbo.num_inference_steps, turbo.defaults["width"]) == (9, 512)
    arguments = family("qwen").call("a star", "", [1, 2], 64, 64, 8, 3.0, lambda: None)
    assert arguments["true_cfg_scale"] == 3.0
    assert arguments["negative_prompt"] == " "
    assert "guidance_scale" not in arguments
    with pytest.raises(CheckpointError, match="num_inference_steps = 0, a whole number above 0"):
        family("turbo", num_inference_steps=0)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("FluxImg2ImgPipeline", "image-to-image"),
        ("SanaSprintImg2ImgPipeline", "image-to-image"),
        ("QwenImageEditPlusPipeline", "image-to-image"),
        ("StableDiffusionUpscalePipeline", "image-to-image"),
        ("StableDiffusionXLInpaintPipeline", "inpainting"),
        ("FluxFillPipeline", "inpainting"),
        ("SanaControlNetPipeline", "ControlNet"),
        ("FluxControlPipeline", "ControlNet"),
        ("WanPipeline", "video"),
        ("WanImageToVideoPipeline", "video"),
        ("SanaVideoPipeline", "video"),
        ("StableAudioPipeline", "audio"),
        ("KandinskyPriorPipeline", "priors"),
    ],
)
def test_pipeline_of_another_task_is_refused_by_its_class_without_weights(name, task, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    (fault,) = check(tmp_path)
    assert fault.state == "fail"
    assert fault.found == f"{tmp_path}: diffusers' {name} is for {task}, and a text-to-image pipeline is needed"


def test_every_text_to_image_pipeline_of_diffusers_is_taken_for_one():
    kinds = [kind for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if "Control" not in kind.__name__]
    tasks = {kind.__name__: other_task(kind.__name__, inspect.signature(kind.__call__).parameters) for kind in kinds}
    assert len(tasks) > 40
    assert {name: task for name, task in tasks.items() if task and not name.startswith("Helios")} == {}  # of videos


@pytest.mark.parametrize("fault", ["pickle", "code", "class", "part", "lora", "quantised", "image", "scheduler"])
def test_load_engine_refuses_what_it_would_have_to_trust_or_cannot_draw(fault, folders, tmp_path):
    folder, options, said = tmp_path / "copy", {}, ""
    shutil.copytree(folders("flux" if fault in ("image", "scheduler") else "pixart"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    if fault == "pickle":
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(folder / "transformer" / "model.bin")
        said = "has no weights"
    elif fault == "code":
        index["transformer"] = ["my_transformer", "Mine"]
        said = "'my_transformer', code that came with the checkpoint"
    elif fault == "class":
        index["_class_name"] = "MyPipeline"
        said = "has no pipeline 'MyPipeline'"
    elif fault == "part":
        index["_class_name"] = "FluxPipeline"
        said = "FluxPipeline needs text_encoder_2"
    elif fault == "lora":
        options, said = {"lora": str(folder / "lora.safetensors")}, "lora"
    elif fault == "quantised":
        config = folder / "transformer" / "config.json"
        method = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": method}))
        said = "its transformer is .* pip install bitsandbytes"
    elif fault == "image":
        index["_class_name"] = "FluxImg2ImgPipeline"
        said = "is for image-to-image"
    else:
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        said = "does not draw from a prompt alone"
    (folder / "model_index.json").write_text(json.dumps(index))
    settings = Settings(model=str(folder), threads=1, devices="cpu", **options)
    with pytest.raises(SetupError, match=said):
        load_engine(settings)
    refused = [finding.what for finding in checkpoints(settings) if finding.state == "fail"]
    assert refused or fault == "scheduler"


@pytest.mark.parametrize("fault", ["missing", "NaN"])
@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_a_pipeline_in_which_a_weight_is_missing_or_not_finite_is_refused(part, fault, folders, tmp_path):
    folder = shutil.copytree(folders("flux"), tmp_path / "flux")
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    if fault == "missing":
        del weights[max(weights)]
    else:
        weights[max(weights)].view(-1)[-1] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"flux/{part}: (no )?weight '"):
        PipelineGenerator(Checkpoint.resolve(str(folder), any_pipeline=True))


def test_stepwise_runs_between_advances_only_and_passes_errors_on():
    seen = []

    def call(step):
        for number in range(2):
            seen.append(number)
            step()
        raise KeyError("end")

    calls = Stepwise(torch.device("cpu"))
    calls.start(call)
    assert seen == []
    assert calls.advance() is None
    assert seen == [0]
    calls.stop()
    calls.stop()
    assert seen == [0]
    calls.start(call)
    assert [calls.advance(), calls.advance()] == [None, None]
    with pytest.raises(KeyError):
        calls.advance()
    calls.start(lambda step: 5)
    assert calls.advance() == 5


@pytest.mark.parametrize("server_program", ["valkey"], indirect=True)
async def test_pipeline_engine_served_job_returns_the_image_of_a_local_one(settings, engines, spec):
    engine = engines("z_image")
    job = spec("z_image", num_samples=3)
    local = run_local(job, engine)
    worker = asyncio.create_task(Worker(settings, lambda: engine).run())
    async with aclosing(await Queue.connect(settings)) as queue:
        while not await queue.workers():
            await asyncio.sleep(0.02)
        await queue.submit(job, cost=1.0)
        async for _ in events_of(queue, job.id):
            pass
        record = await queue.record(job.id)
        result = assemble(record.spec, record.status, record.outcomes)
        assert result.status is JobStatus.SUCCEEDED
        assert [image.candidate for image in result.images] == [image.candidate for image in local.result.images]
        winner = result.images[0].candidate
        assert await queue.image(job.id, winner) == local.images[winner]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await worker == 0


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao, which writes to stderr wherever torch loads")
@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_a_quantised_checkpoint_draws_what_diffusers_draws(folders, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    folder = tmp_path / "int8"
    shutil.copytree(folders("pixart"), folder)
    config = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
    kind = diffusers.PixArtTransformer2DModel
    kind.from_pretrained(folder / "transformer", quantization_config=config, torch_dtype=torch.float32).save_pretrained(
        folder / "transformer"
    )
    assert quantised_with(folder / "transformer") == "torchao"
    engine = load_engine(Settings(model=str(folder), judge=str(JUDGE), threads=1, devices="cpu"))
    drawn = engine.generator.decode(engine.generator.draw(PROMPT, [SEED], num_inference_steps=STEPS, **SIZE))
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    options = {"num_inference_steps": STEPS, "use_resolution_binning": False, "clean_caption": False} | SIZE
    plain = pipe(PROMPT, generator=torch.Generator("cpu").manual_seed(SEED), **options).images[0]
    assert (drawn[0].numpy() == np.asarray(plain)).all()
