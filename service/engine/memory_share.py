"""A device's memory shared out: what a checkpoint's work takes, and which weights stay with it. Pure arithmetic."""

from dataclasses import dataclass

from bestofn.models import residency
from bestofn.models.autoencoder import TILE, is_tiled
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.service.engine.prompts import STEP

# Values alive at the peak of a forward, counted over the published shapes: a token's in the transformer, in units of
# the Mix-FFN's width before its gate (2 F), with fused operators and with plain ones; and a pixel's in the decoder, in
# units of its last stage's channels. A judge's are left out: 27 MiB a tile in 16 bits.
ROW_VALUES = {"cuda": 2.0, "cpu": 7.0}
DECODE_VALUES = 6.5
PIXEL_BYTES = 24  # a pixel of an image in tiles: as decoded, blended, in float32 and as uint8
GPU_OVERHEAD = 3 * 2**29  # 1.5 GiB: the driver, libraries' workspaces, a forward of a few rows, a judge's batch


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes of a checkpoint's work at its own size of images.

    Attributes:
        row: activations of one row of the transformer's batch.
        context: keys and values of one prompt.
        image: activations of decoding one image.
        overhead: everything else on the device.
    """

    row: int
    context: int
    image: int
    overhead: int = 0

    @property
    def prompts(self) -> int:
        """Bytes of the prompt table."""
        return STEP * self.context

    @property
    def reserved(self) -> int:
        """Bytes that weights leave free: one image is decoded whatever else runs."""
        return self.image + self.prompts + self.overhead


def work_of(
    config: LinearDiTConfig, compression: int, channels: int, text: int, itemsize: int, device: str
) -> Work:  # fmt: skip
    """The work of a checkpoint at its own size of images.

    Args:
        config: the transformer's shape.
        compression: pixels per latent cell and side.
        channels: channels of the decoder's last stage.
        text: tokens of every prompt's context.
        itemsize: bytes of a value on the device.
        device: "cuda" or "cpu".
    """
    side = config.sample_size * compression
    pixels, tiled = side**2, is_tiled(side, side)
    tokens = pixels // (compression * config.patch_size) ** 2
    image = int(DECODE_VALUES * channels * (TILE**2 if tiled else pixels) * itemsize)
    return Work(
        row=int(ROW_VALUES[device] * 2 * config.ffn_width * tokens * itemsize),
        context=2 * config.num_layers * text * config.cross_width * itemsize,
        image=image + (PIXEL_BYTES * pixels if tiled else 0),
        overhead=GPU_OVERHEAD if device == "cuda" else 0,
    )


def share_memory(generator: dict[str, int], judge: int, memory: int, reserved: int) -> tuple[bool, int]:
    """Whether the judges stay in memory with the generator, and the bytes for the generator's weights.

    They stay if the transformer and the decoder fit with them. The text encoder may be offloaded, because each prompt
    needs it once. It must fit with the judges alone.

    Args:
        generator: bytes of each part's weights.
        judge: bytes of all judges' weights.
        memory: bytes of the device.
        reserved: bytes that no weights may take (`Work.reserved`).
    """
    budget = max(1, min(int(residency.WEIGHTS_SHARE * memory), memory - reserved))
    least = max(generator["text_encoder"], generator["transformer"] + generator["decoder"])
    shared = least + judge <= budget
    return shared, budget - judge if shared else budget
