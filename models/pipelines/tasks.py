"""What a class of diffusers' pipelines makes, from its name and the parameters of its call."""

import re
from collections.abc import Collection

BY_PARAMETER = {
    "audio": ("audio", "audio_duration", "audio_duration_s", "num_waveforms_per_prompt"),
    "text": ("gen_length",),
    "3D": ("frame_size",),
    "video": ("num_frames", "num_videos_per_prompt", "video", "video_length", "control_video"),
    "ControlNet": ("control_image", "controlnet_conditioning_scale"),
    "T2I-Adapter": ("adapter_conditioning_scale",),
    "inpainting": ("mask_image",),
    "image-to-image": ("strength",),
}
"""Tasks by a parameter that only their calls have; the first that fits counts, as of an inpainting ControlNet."""

BY_NAME = {
    "image-to-image": re.compile(r"Img2Img|(Qwen|LongCat)ImageEdit|Layered|Pix2Pix|Refiner|SuperResolution|Upscale"),
    "priors": re.compile("Prior"),
}
"""Tasks by the name of the class; editing pipelines of other families draw from a prompt alone too."""


def other_task(name: str, parameters: Collection[str]) -> str:
    """What a pipeline does instead of drawing from a prompt alone; empty for text-to-image.

    An optional `image` alone says nothing: FLUX.2 and Kontext draw with and without one.

    Args:
        name: the class's name.
        parameters: names that its call takes.
    """
    for task, own in BY_PARAMETER.items():
        if not set(own).isdisjoint(parameters):
            return task
    return next((task for task, pattern in BY_NAME.items() if pattern.search(name)), "")
