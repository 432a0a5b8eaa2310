"""How an image is made again: as a request, and as the diffusers call that draws it without us."""

import re
from typing import Any

from bestofn.judge.verdict import Rule
from bestofn.service.core.jobs import Revision
from bestofn.service.core.workers import PipelineCall
from bestofn.service.media.metadata import Story

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether it is a commit of the hub, and not the revision of a folder."""
    return _COMMIT.fullmatch(revision) is not None


def remake_request(story: Story) -> dict[str, Any]:
    """The fields of POST /generate that draw exactly this image, as the only candidate.

    `prompt` is missing if it was left out of the image.
    """
    told = story.prompt is not None
    prompts = {"prompt": story.prompt, "negative_prompt": story.negative_prompt or ""} if told else {}
    depth = {} if story.layers is None else {"depth": len(story.layers)}
    return prompts | {
        "num_samples": 1,
        "seed": story.seed,
        "width": story.width,
        "height": story.height,
        "num_inference_steps": story.num_inference_steps,
        "guidance_scale": story.guidance_scale,
        # One candidate is the best by any rule, and this one would need a second judge.
        "rule": Rule.MARGIN.value if story.rule is Rule.LOWER_BOUND else story.rule.value,
        "model": story.model.name,
        "judge": story.judge.name,
        "embed_prompt": told,
        **depth,
    }


def diffusers_call(story: Story) -> str:
    """Python source that draws the image with plain diffusers, to within the rounding of the hardware.

    A SANA checkpoint from the hub is called as diffusers calls it by default. One in a folder may bring defaults of its
    own, which our package reads. LoRAs are called by name: the operator knows their files and strengths.
    """
    model = story.model.checkpoint
    hub = is_commit(model.revision)
    if story.pipeline is not None:
        load = _loaded(model, story.pipeline.name, story.pipeline.dtype, hub)
        further = _of_pipeline(story, story.pipeline)
    else:
        load = _loaded(model, "DiffusionPipeline", "bfloat16", hub) if hub else _from_folder(model)
        further = _of_sana(story, hub)
    call = [
        "..." if story.prompt is None else _literal(story.prompt),
        f"width={story.width}",
        f"height={story.height}",
        f"num_inference_steps={story.num_inference_steps}",
        f'generator=torch.Generator("cpu").manual_seed({story.seed})',
        *further,
    ]
    comment = [] if story.prompt is not None else ["# The prompt was left out of the image: write it in."]
    lines = [
        *load,
        *(f"pipeline.load_lora_weights({_literal(name)})" for name in story.model.loras),
        *_shallower(story),
        *comment,
        "image = pipeline(",
        *(f"    {argument}," for argument in call),
        ").images[0]",
    ]
    return "\n".join(lines)


def _of_sana(story: Story, hub: bool) -> list[str]:
    sprint = hub and "sprint" in story.model.name.lower()  # its pipeline takes no negative prompt
    return [
        f"guidance_scale={story.guidance_scale!r}",
        *([f"negative_prompt={_literal(story.negative_prompt)}"] if story.negative_prompt and not sprint else []),
        "use_resolution_binning=False",
        *(["intermediate_timesteps=None"] if sprint and story.num_inference_steps != 2 else []),
        *([] if hub else ["max_sequence_length=calls.max_sequence_length"]),
        *([] if hub else ["complex_human_instruction=list(calls.complex_human_instruction)"]),
    ]


def _of_pipeline(story: Story, pipeline: PipelineCall) -> list[str]:
    negative = story.negative_prompt or (" " if pipeline.guidance == "true_cfg_scale" else "")
    return [
        *([f"{pipeline.guidance}={story.guidance_scale!r}"] if pipeline.guidance else []),
        *([f"negative_prompt={_literal(negative)}"] if negative and pipeline.reads_negative else []),
        *(f"{name}={value!r}" for name, value in pipeline.arguments.items()),
    ]


def _loaded(model: Revision, pipeline: str, dtype: str, hub: bool) -> list[str]:
    pinned = f', revision="{model.revision}"' if hub else ""
    return [
        "import torch",
        f"from diffusers import {pipeline}",
        "",
        *([] if hub else [f"# The folder of revision {_plain(model.revision)}"]),
        f"pipeline = {pipeline}.from_pretrained(",
        f"    {_literal(model.name)}{pinned}, dtype=torch.{dtype}",
        ")" if dtype == "float32" else ').to("cuda")',
    ]


def _from_folder(model: Revision) -> list[str]:
    return [
        "import torch",
        "from bestofn.models.checkpoint import Checkpoint",
        "from diffusers import DiffusionPipeline",
        "",
        f"checkpoint = Checkpoint.resolve({_literal(model.name)})  # revision {_plain(model.revision)}",
        "calls = checkpoint.call_defaults()",
        "pipeline = DiffusionPipeline.from_pretrained(checkpoint.path, dtype=torch.float32)",
    ]


def _shallower(story: Story) -> list[str]:
    if story.layers is None:
        return []
    return [
        "blocks = pipeline.transformer.transformer_blocks",
        f"pipeline.transformer.transformer_blocks = torch.nn.ModuleList(blocks[i] for i in {list(story.layers)})",
    ]


def _literal(text: str) -> str:
    """As Python source, in which every character that does not print is escaped."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and "'" not in text and '"' not in text else written


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]", "?", text)
