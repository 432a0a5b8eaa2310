"""Any text-to-image pipeline of diffusers on one device: loaded without code or pickles, called with one seed an image.

B candidates, (H, W) pixels.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bestofn.models import residency
from bestofn.models.checkpoint import Checkpoint, absent_quantiser, pipeline_parts
from bestofn.models.defaults import Defaults, Flops
from bestofn.models.errors import CheckpointError, ModelError, PromptTooLong
from bestofn.models.guidance import needs_negative
from bestofn.models.pipelines.default_size import config_of, size_of
from bestofn.models.pipelines.family import Family
from bestofn.models.pipelines.missing_weights import check_loaded, encoders
from bestofn.models.weight_files import one_line, refused

PROMPTS_KEPT = 16
BATCH = 16  # first batch size of `draw_all` on a GPU
COUNTED = (8, 16, 24)  # sides in size multiples, at which FLOPs are counted
UNLIMITED = 10_000  # transformers' tokenizers without a limit of their own have a huge one


class PipelineGenerator:
    """One pipeline on one device. Not thread-safe.

    Public interface::

        generator.draw(prompt, seeds, ...)      (B, H, W, 3) float32 on the device, in 0..1
        generator.decode(images)                (B, H, W, 3) uint8
        generator.defaults                      Defaults(width, height, num_inference_steps, guidance_scale, ...)
        generator.flops(width, height)          Flops(forward, decode, text) of one sample
        generator.tokenizer                     FastTokenizer: check(prompt), limit, json
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu", memory_budget: int | None = None):
        """
        Args:
            checkpoint: a resolved checkpoint of any family.
            device: where it computes.
            memory_budget: bytes that the weights may take; with more, the parts of a GPU's pipeline take turns.

        Raises:
            CheckpointError: it cannot be loaded, or does not draw an image from a prompt.
        """
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.family = Family.of(checkpoint)
        self.dtype = _dtype(checkpoint, self.device)
        self._batch = BATCH if self.device.type == "cuda" else 1
        self._prompts: OrderedDict[str, Any] = OrderedDict()
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        try:
            self.pipe = getattr(diffusers, self.family.name).from_pretrained(
                checkpoint.path,
                dtype=self.dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **encoders(checkpoint, self.dtype),
            )
            check_loaded(self.pipe, checkpoint.path)
        except ModelError:
            raise
        except Exception as error:  # each library has errors of its own
            reasons = "; ".join(filter(None, (one_line(error), absent_quantiser(checkpoint.path))))
            raise CheckpointError(f"{checkpoint.path}: {self.family.name} cannot be loaded: {reasons}") from error
        self.pipe.set_progress_bar_config(disable=True)
        if hasattr(getattr(self.pipe, "vae", None), "enable_slicing"):
            self.pipe.vae.enable_slicing()  # images of a batch are decoded one after the other
        if hasattr(self.pipe, "encode_prompt"):
            self.pipe.encode_prompt = partial(self._encode_once, self.pipe.encode_prompt)
        with refused(checkpoint.path):
            self.tokenizer = FastTokenizer(self.pipe, self.family)
        self._place(memory_budget)
        self._flops = self._count_flops()

    def _place(self, budget: int | None) -> None:
        weights = sum(
            value.numel() * value.element_size()
            for part in self.pipe.components.values()
            if isinstance(part, torch.nn.Module)
            for value in part.parameters()
        )
        if self.device.type == "cuda" and budget is not None and weights > budget:
            self.pipe.enable_model_cpu_offload(device=self.device)
        else:
            self.pipe.to(self.device)

    @cached_property
    def defaults(self) -> Defaults:
        """Call defaults and limits."""
        width, height = size_of(self.pipe, self.family)
        scale, patch = getattr(self.pipe, "vae_scale_factor", 8), config_of(self.pipe).get("patch_size")
        multiple = scale * math.lcm(2, patch if isinstance(patch, int) else 1)  # families that pack 2x2 latents have 1
        return Defaults(
            width=width,
            height=height,
            num_inference_steps=self.family.num_inference_steps,
            guidance_scale=self.family.guidance_scale,
            size_multiple=multiple,
            token_limit=self.tokenizer.limit,
            max_sequence_length=self.tokenizer.limit,
        )

    def needs_negative(self, guidance_scale: float) -> bool:
        """Whether a candidate takes a second row for the negative prompt."""
        return needs_negative(guidance_scale, embedded=not self.family.reads_negative)

    def flops(self, width: int, height: int) -> Flops:
        """FLOPs of one sample of this size: of one row's step, of the decoding, and of its prompts' encoding."""
        step, decode = (max(0, round(float(curve(width * height)))) for curve in self._flops[:2])
        rows = 2 if self.needs_negative(self.defaults.guidance_scale) else 1
        return Flops(forward=step // rows, decode=decode, text=self._flops[2] // rows)

    def draw(
        self,
        prompt: str,
        seeds: Sequence[int],
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """One call of the pipeline, with one generator a seed.

        Args:
            prompt, negative_prompt: as the user wrote them; a negative one is left out where it is not read.
            seeds: one an image.
            width, height, num_inference_steps, guidance_scale: the checkpoint's when None.
            on_step: called at the end of each step, where the family has a callback; what it raises ends the call.

        Returns:
            (B, H, W, 3) float32 on the device, in 0..1.

        Raises:
            ValueError: the family refuses the size or another argument.
        """
        defaults = self.defaults
        arguments = self.family.call(
            prompt,
            negative_prompt,
            seeds,
            width or defaults.width,
            height or defaults.height,
            num_inference_steps or defaults.num_inference_steps,
            defaults.guidance_scale if guidance_scale is None else guidance_scale,
            on_step,
        )
        return torch.from_numpy(np.asarray(self.pipe(**arguments).images, np.float32)).to(self.device)

    def draw_all(self, prompt: str, seeds: Sequence[int], **options: Any) -> Tensor:
        """`draw` for any number of seeds: one by one on a CPU, in batches that are halved until they fit on a GPU."""
        images: list[Tensor] = []
        while len(images) < len(seeds):
            batch = seeds[len(images) : len(images) + self._batch]
            try:
                images += self.draw(prompt, batch, **options)
                continue
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
            self._batch = len(batch) // 2 or 1
            torch.cuda.empty_cache()
        return torch.stack(images)

    def decode(self, images: Tensor, *, stay: bool = False) -> Tensor:
        """(B, H, W, 3) uint8 of images in 0..1, as diffusers rounds them; on the CPU unless they `stay`."""
        pixels = (images.nan_to_num() * 255).round().to(torch.uint8)
        return pixels if stay else pixels.cpu()

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of what `decode` takes for one image: the pipeline has decoded it already."""
        return height, width, 3

    def release(self, part: str | None = None) -> bool:
        """Forget the prompts' embeddings; returns whether there were any. Parts of a pipeline stay where they are."""
        held = bool(self._prompts)
        self._prompts.clear()
        return held

    def _encode_once(self, encode: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The pipeline's `encode_prompt`, once for equal texts and options."""
        if any(isinstance(value, Tensor) for value in (*args, *options.values())):
            return encode(*args, **options)
        key = repr((args, sorted(options.items())))
        if key not in self._prompts:
            self._prompts[key] = encode(*args, **options)
            if len(self._prompts) > PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return self._prompts[key]

    def _count_flops(self) -> tuple[np.poly1d, np.poly1d, int]:
        """FLOPs of a step and of decoding by the number of pixels, and of the text, counted in small images.

        Attention makes them quadratic in the number of pixels, so three sizes give all others. Text is encoded once.
        """
        sides = [self.defaults.size_multiple * times for times in COUNTED]
        (first, *marks), total = self._counted(sides[0], 2)
        second = marks[0] if marks else total
        steps, decodes = [second - first], [total - second]
        for side in sides[1:]:
            (step, *_), total = self._counted(side, 1)
            steps.append(step)
            decodes.append(total - step)
        pixels = [side**2 for side in sides]
        curves = (np.poly1d(np.polyfit(pixels, counts, 2)) for counts in (steps, decodes))
        return next(curves), next(curves), max(0, 2 * first - second)

    def _counted(self, side: int, steps: int) -> tuple[list[int], int]:
        """FLOPs of a square image up to the end of each step, and all of them."""
        marks: list[int] = []
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            options: dict[str, Any] = {
                "num_inference_steps": steps,
                "on_step": lambda: marks.append(counter.get_total_flops()),
            }
            try:
                images = self.draw("a", [0], width=side, height=side, **options)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise MemoryError(str(error)) from error
            except Exception as error:
                name = self.family.name
                raise CheckpointError(f"{name} does not draw from a prompt alone: {one_line(error)}") from error
        if images.shape != (1, side, side, 3):
            raise CheckpointError(f"{self.family.name} gave {tuple(images.shape)} instead of one image")
        total = counter.get_total_flops()
        return marks or [total * (step + 1) // steps for step in range(steps)], total


class FastTokenizer:
    """The tokenizer that reads the longest prompt; pipelines have up to four, and cut what the others do not read."""

    def __init__(self, pipe: Any, family: Family) -> None:
        """
        Raises:
            CheckpointError: no tokenizer of the pipeline is a fast one of transformers.
        """
        parts = [getattr(part, "tokenizer", part) for part in pipe.components.values()]  # a processor has one
        fast = [part for part in parts if getattr(part, "is_fast", False)]
        if not fast:
            raise CheckpointError(f"{family.name}: no tokenizer.json, nor a tokenizer that transformers makes one of")
        longest = family.defaults.get("max_sequence_length")
        limits = [min(part.model_max_length, longest or UNLIMITED) for part in fast]
        self.limit = max(limits)
        """Tokens of a prompt, control tokens included."""
        backend = fast[limits.index(self.limit)].backend_tokenizer
        self.json = json.dumps(json.loads(backend.to_str()), sort_keys=True).encode()
        self._tokenizer = Tokenizer.from_buffer(self.json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def check(self, prompt: str) -> None:
        """Raise PromptTooLong where the pipeline would silently cut the prompt."""
        tokens = len(self._tokenizer.encode(prompt).ids)
        if tokens > self.limit:
            raise PromptTooLong(tokens, self.limit)


def _dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """float32 on a CPU; on a GPU bfloat16, or float16 for a denoiser that is stored so."""
    if device.type != "cuda":
        return torch.float32
    parts = pipeline_parts(checkpoint.path)
    denoiser = next((part for part in ("transformer", "unet") if parts.get(part)), None)
    stored = residency.stored_dtype(checkpoint.path / denoiser) if denoiser else "BF16"
    return torch.float16 if stored == "F16" else torch.bfloat16
