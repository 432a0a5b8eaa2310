"""The generator: everything of one checkpoint that the engine calls, loaded part by part on one device.

Public interface (B rows, C latent channels, (h, w) latent grid, (H, W) pixels)::

    generator = Generator.load("shapes", device="cpu")
    generator.defaults                      Defaults(width, height, num_inference_steps, guidance_scale, ...)
    generator.checkpoint                    Checkpoint(name, path, revision)
    generator.tokenizer                     PromptTokenizer: check(prompt), count(prompt), limit
    generator.noise(seed, w, h, draws)      (draws, C, h, w) float32 on the CPU; draws[0] starts, draws[1 + i] is z_i
    generator.prompt_contexts(pairs)        PromptContext of each (prompt, negative); True for the negative prompt
    generator.solver_table(steps)           SolverTable; rows (S, 8) to index per slot, .noise_draws
    generator.output(x, at, context, g)     network output (B, C, h, w) at the solver rows ``at``
    generator.decode(latents)               (B, H, W, 3) uint8 on the CPU
    generator.needs_negative(guidance)      whether a candidate takes two rows of a batch
    generator.flops(width, height, layers)  Flops(forward, decode, text) of one sample

A step of one candidate with guidance is::

    at = StepCoefficients.of(table.rows[[i]])
    velocity = guide(output(x, at, context, g), output(x, at, negative, g), scale)
    x, previous = solver_step(x, previous, velocity, at, noise)
"""

import gc
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import lcm
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from bestofn.models import flops, residency
from bestofn.models.autoencoder import Decoder
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.defaults import FOLDERS, Defaults, Flops, part_dtypes
from bestofn.models.errors import CheckpointError, ModelError
from bestofn.models.guidance import needs_negative
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.linear_dit.fp8 import check_supported, with_fp8_products
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import from_diffusers
from bestofn.models.lora import Lora
from bestofn.models.solver import SolverTable, StepCoefficients, solver_table
from bestofn.models.text import EmbeddingCache, PromptTokenizer, encode, load_text_encoder
from bestofn.models.weight_files import refused

# SanaPipeline refuses sides that are not multiples of this, whatever the autoencoder.
PIPELINE_MULTIPLE = 32


class Generator:
    """One checkpoint on one device. Not thread-safe.

    Parts are loaded when first needed. If they do not all fit the memory, the one that is needed least often gives
    way (text encoder first), with a RuntimeWarning.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        memory_budget: int | None = None,
        *,
        fp8_drafts: bool = False,
        loras: Sequence[Lora] = (),
        low_precision: bool = False,
    ) -> None:
        """
        Args:
            checkpoint: a resolved checkpoint.
            device: where it computes.
            memory_budget: bytes of all parts' weights together; 80 % of the device's memory if None.
            fp8_drafts: memory is reckoned for `output` with `fp8`.
            loras: updates of the transformer, in the order in which they are added.
            low_precision: the transformer computes in bfloat16 on a CPU too.

        Raises:
            CheckpointError, UnsupportedScheduler: naming what does not fit; weights are checked when they are loaded.
            UnsupportedDevice: it has no FP8 matrix products.
        """
        self.checkpoint, self.loras = checkpoint, loras
        self.device = torch.device(device)
        self.config = LinearDiTConfig.from_file(checkpoint.path / "transformer" / "config.json")
        self.vae_config = checkpoint.config("vae", "config.json")
        self.scheduler_config = checkpoint.config("scheduler", "scheduler_config.json")
        self.calls = checkpoint.call_defaults()
        if self.vae_config.get("_class_name") != "AutoencoderDC":
            raise CheckpointError(
                f"{checkpoint.path}/vae: only AutoencoderDC is supported, got {self.vae_config.get('_class_name')!r}"
            )
        channels = self.vae_config.get("latent_channels")
        if channels != self.config.in_channels:
            raise CheckpointError(
                f"{checkpoint.path}: the transformer takes {self.config.in_channels} latent channels, "
                f"the autoencoder makes {channels}"
            )
        self.compression = checkpoint.compression  # pixels per latent cell and side
        self.tokenizer = PromptTokenizer.load(
            checkpoint.path / "tokenizer",
            checkpoint.component("tokenizer"),
            self.calls.max_sequence_length,
            self.calls.complex_human_instruction,
        )
        self.solver_table(self.calls.num_inference_steps)  # finds a scheduler that does not fit now
        stored = residency.stored_dtype(checkpoint.path / "transformer")
        self.dtypes = part_dtypes(self.device, stored, low_precision)
        if stored == "F16" and self.dtypes["transformer"] != torch.float16:
            warn(f"{checkpoint.name} was made for float16; in float32 its images may differ", RuntimeWarning, 2)
        self._budget = memory_budget or int(residency.WEIGHTS_SHARE * residency.memory_bytes(self.device))
        self._sizes = {
            part: residency.weight_bytes(checkpoint.path / folder, self.dtypes[part].itemsize)
            for part, folder in FOLDERS.items()
        }
        if fp8_drafts:
            check_supported(self.device)
            self._sizes["transformer"] += residency.weight_bytes(checkpoint.path / FOLDERS["transformer"], itemsize=1)
        self._parts: dict[str, Any] = {}
        self._fp8: LinearDiT | None = None
        self._loading = threading.Lock()  # batches may run in threads side by side
        self._embeddings = EmbeddingCache(
            lambda prompt, negative: encode(self.text_encoder, self.tokenizer, prompt, instructed=not negative),
            with_empty=self.needs_negative(self.calls.guidance_scale),
        )

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu", memory_budget: int | None = None) -> "Generator":
        """Resolve a checkpoint's name (`Checkpoint.resolve`) and open it on a device."""
        return cls(Checkpoint.resolve(name), device, memory_budget)

    # What the checkpoint says

    @cached_property
    def defaults(self) -> Defaults:
        """Call defaults and limits."""
        side = self.config.sample_size * self.compression
        return Defaults(
            width=side,
            height=side,
            num_inference_steps=self.calls.num_inference_steps,
            guidance_scale=self.calls.guidance_scale,
            size_multiple=lcm(PIPELINE_MULTIPLE, self.compression * self.config.patch_size),
            token_limit=self.tokenizer.limit,
            max_sequence_length=self.calls.max_sequence_length,
        )

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of an image; raises ModelError for a size that is no multiple of ``defaults.size_multiple``."""
        multiple = self.defaults.size_multiple
        if width < multiple or height < multiple or width % multiple or height % multiple:
            raise ModelError(f"width and height must be multiples of {multiple}, got {width}x{height}")
        return self.config.in_channels, height // self.compression, width // self.compression

    def needs_negative(self, guidance_scale: float) -> bool:
        """Whether a candidate takes a second row for the negative prompt."""
        return needs_negative(guidance_scale, self.config.guidance_embeds)

    def solver_table(self, steps: int) -> SolverTable:
        """Coefficients of the checkpoint's solver for ``steps`` steps."""
        return solver_table(self.scheduler_config, steps, self.config.timestep_scale)

    def flops(self, width: int, height: int, layers: int | None = None) -> Flops:
        """FLOPs of one sample of this size through ``layers`` layers (None: all)."""
        _, h, w = self.latent_shape(width, height)
        shape = self.config if layers is None else replace(self.config, num_layers=layers)
        return Flops(
            forward=flops.forward_flops(shape, h, w, self.calls.max_sequence_length),
            decode=self._decode_flops_per_cell * h * w,
            text=self._text_flops,
        )

    @cached_property
    def _text_flops(self) -> int:
        with refused(self.checkpoint.path / "text_encoder"):
            encoder = self.checkpoint.config("text_encoder", "config.json")
            encoded = flops.text_flops(encoder, self.tokenizer.window(instructed=True))
        return encoded + flops.context_flops(self.config, self.calls.max_sequence_length)

    @cached_property
    def _decode_flops_per_cell(self) -> int:
        with refused(self.checkpoint.path / "vae"):
            return flops.decode_flops(self.vae_config, 1, 1)

    # What it computes

    def noise(self, seed: int, width: int, height: int, draws: int = 1) -> Tensor:
        """The noise that diffusers draws for ``torch.Generator("cpu").manual_seed(seed)`` and one image.

        Args:
            seed: the candidate's seed, 0 <= seed < 2**63.
            width, height: pixels.
            draws: 1, plus the table's ``noise_draws`` for a solver that adds fresh noise.

        Returns:
            (draws, C, h, w) float32 on the CPU, whatever the device.
        """
        shape = self.latent_shape(width, height)
        source = torch.Generator("cpu").manual_seed(seed)
        # one call a draw: a longer call would take the stream's numbers in another order
        return torch.cat([torch.randn((1, *shape), generator=source, dtype=torch.float32) for _ in range(draws)])

    @torch.inference_mode()
    def prompt_contexts(self, prompts: Sequence[tuple[str, bool]]) -> list[PromptContext]:
        """Encode prompts and take the transformer's keys and values of each; slow, once per prompt.

        Where memory is short, parts are swapped once for all.

        Args:
            prompts: (prompt as the user wrote it, whether it is the negative prompt, which goes without the complex
                human instruction).

        Raises:
            PromptTooLong: naming the limit.
        """
        texts = [self._embeddings.get(prompt, negative) for prompt, negative in prompts]
        return [self.denoiser.prompt_context(text.states, text.mask) for text in texts]

    @torch.inference_mode()
    def output(
        self,
        x: Tensor,
        at: StepCoefficients,
        context: PromptContext,
        guidance_scale: Tensor,
        layers: Sequence[int] | None = None,
        *,
        fp8: bool = False,
    ) -> Tensor:
        """The network's output for a batch whose rows may differ in everything but size.

        Args:
            x: (B, C, h, w) float32 samples on the device.
            at: the rows' solver coefficients, on the device.
            context: keys and values of B prompts.
            guidance_scale: (B,); used only where guidance is an input of the network.
            blocks: indices of the transformer's blocks that run; all if None (`LinearDiT.forward`).
            fp8: with FP8 matrix products (`linear_dit.fp8`), for drafts.

        Returns:
            (B, C, h, w) in the transformer's dtype.
        """
        embedded = guidance_scale * self.config.guidance_embeds_scale if self.config.guidance_embeds else None
        denoiser = self._fp8_denoiser() if fp8 else self.denoiser
        return denoiser(at.input_scale * x, at.timestep, context, embedded, layers)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor, *, stay: bool = False) -> Tensor:
        """Finished latents (B, C, h, w) -> (B, H, W, 3) uint8, on the CPU unless they `stay`; see `Decoder`."""
        return self.decoder(latents, stay=stay)

    @property
    def denoiser(self) -> LinearDiT:
        """The transformer, loaded when first asked for."""
        return self._part("transformer")  # type: ignore[no-any-return]

    @property
    def text_encoder(self) -> Any:
        """Gemma-2, loaded when first asked for."""
        return self._part("text_encoder")

    @property
    def decoder(self) -> Decoder:
        """The DC-AE's decoder, loaded when first asked for."""
        return self._part("decoder")  # type: ignore[no-any-return]

    def warm_up(self) -> None:
        """Load the parts that fit together, so that the first job does not wait for the disk."""
        for part in reversed(residency.RELEASE_ORDER):
            if not residency.to_release(part, self._sizes, list(self._parts), self._budget):
                self._part(part)

    def release(self, part: str) -> bool:
        """Drop ``text_encoder``, ``transformer`` or ``decoder`` from memory; it is loaded again when next needed.

        Returns:
            Whether it was in memory.
        """
        if self._parts.pop(part, None) is None:
            return False
        if part == "transformer":
            self._fp8 = None  # which shares its weights
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _part(self, part: str) -> Any:
        with self._loading:
            if part not in self._parts:
                for victim in residency.to_release(part, self._sizes, list(self._parts), self._budget):
                    self.release(victim)
                    self._warn_of_turns()
                folder = self.checkpoint.path / FOLDERS[part]
                transformer = partial(from_diffusers, loras=self.loras)
                load: Any = {"text_encoder": load_text_encoder, "transformer": transformer, "decoder": Decoder.load}
                self._parts[part] = load[part](folder, self.device, self.dtypes[part])
            return self._parts[part]

    def _fp8_denoiser(self) -> LinearDiT:
        denoiser = self.denoiser
        with self._loading:
            if self._fp8 is None:
                self._fp8 = with_fp8_products(denoiser)
            return self._fp8

    def _warn_of_turns(self) -> None:
        parts = ", ".join(f"{part} {size / 2**30:.1f}" for part, size in self._sizes.items())
        warn(
            f"the generator's parts ({parts} GiB) do not fit {self._budget / 2**30:.1f} GiB together and take turns in "
            "memory: new prompts wait for weights to be read again",
            RuntimeWarning,
            stacklevel=3,
        )
