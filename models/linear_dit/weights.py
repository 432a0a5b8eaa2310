"""Weights of the linear DiT in and out of the diffusers layout, checked key by key."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bestofn.models.errors import CheckpointError
from bestofn.models.finite import check_finite
from bestofn.models.linear_dit.blocks import PointwiseConv
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT, PatchEmbed
from bestofn.models.lora import Lora, merged
from bestofn.models.weight_files import weight_files

DTYPES = ("BF16", "F16", "F32")
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def file_shapes(model: LinearDiT) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape in a diffusers file, where matrix products of ours are convolutions."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, PointwiseConv):
            shapes[f"{name}.weight"] = (module.out_features, module.in_features, 1, 1)
        elif isinstance(module, PatchEmbed):
            channels = module.proj.in_features // module.patch**2
            shapes[f"{name}.proj.weight"] = (module.proj.out_features, channels, module.patch, module.patch)
    return shapes


def check_keys(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raise CheckpointError at the first weight that is missing, has no place, or has another shape."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: no weight {missing[0]!r} of shape {wanted[missing[0]]}{more}")
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(f"{folder}: config.json has no place for weight {extra[0]!r} {found[extra[0]]}{more}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(f"{folder}: weight {name!r} has shape {found[name]}, config.json asks for {shape}")


def _check_dtypes(found: dict[str, str], folder: Path) -> None:
    """Raise CheckpointError for a weight in whole numbers or in 8 bits, which could not be read without scales."""
    for name, dtype in found.items():
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{folder}: weight {name!r} is {dtype}, a quantised file: {' or '.join(DTYPES)} is needed"
            )


def load_weights(
    model: LinearDiT, tensors: Iterator[tuple[str, Tensor]], device: torch.device | str, dtype: torch.dtype
) -> None:
    """Put diffusers-shaped tensors in place of the model's parameters, or into those that have memory already; one at a
    time, converting each as it comes."""
    owners: dict[str, nn.Module] = dict(model.named_modules())
    for name, tensor in tensors:
        path, _, leaf = name.rpartition(".")
        own = owners[path].get_parameter(leaf)
        if own.is_meta:
            value = tensor.reshape(own.shape).to(device=device, dtype=dtype)
            setattr(owners[path], leaf, nn.Parameter(value.contiguous(), requires_grad=True))
        else:
            own.data.copy_(tensor.reshape(own.shape))


def from_diffusers(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    loras: Sequence[Lora] = (),
) -> LinearDiT:
    """Load the transformer of a diffusers SANA checkpoint.

    Args:
        folder: the ``transformer`` folder: ``config.json`` and one or several safetensors files.
        device, dtype: where and as what the weights are kept. Only one tensor at a time is held twice.
        loras: updates that are added to the weights.

    Raises:
        CheckpointError: naming the config field or the weight (with both shapes) that does not fit, or a weight
            that is not finite.
    """
    folder = Path(folder)
    config = LinearDiTConfig.from_file(folder / "config.json")
    with torch.device("meta"):
        model = LinearDiT(config)
    with ExitStack() as stack:
        handles = [stack.enter_context(safe_open(file, framework="pt")) for file in weight_files(folder)]
        found = {name: tuple(file.get_slice(name).get_shape()) for file in handles for name in file.keys()}  # noqa: SIM118
        shapes = file_shapes(model)
        check_keys(shapes, found, folder)
        _check_dtypes({name: file.get_slice(name).get_dtype() for file in handles for name in file.keys()}, folder)  # noqa: SIM118
        if torch.device(device).type == "cuda":
            model.pack(device, dtype)
        names = ((name, file.get_tensor(name)) for file in handles for name in file.keys())  # noqa: SIM118
        load_weights(model, merged(names, shapes, loras), device, dtype)
    check_finite(model, " with LoRA ".join([str(folder), *(lora.name for lora in loras)]))
    return model.eval()


def to_diffusers_state_dict(model: LinearDiT) -> dict[str, Tensor]:
    """The model's parameters under diffusers' names and shapes (views, no copies)."""
    shapes = file_shapes(model)
    return {name: parameter.detach().reshape(shapes[name]) for name, parameter in model.named_parameters()}


def save_diffusers(model: LinearDiT, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a ``transformer`` folder that `from_diffusers` and diffusers itself load.

    Args:
        model: any linear DiT.
        folder: made when absent.
        dtype: dtype of the stored weights; the model's when None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    state = {
        name: value.to("cpu", dtype or model.dtype).contiguous()
        for name, value in to_diffusers_state_dict(model).items()
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
