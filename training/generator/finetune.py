"""Trains a checkpoint's transformer further on images with captions: flow matching, on one or more processes.

B images, C channels, h w latent pixels, L text tokens, E their width. Several processes share the weights
(`fully_shard`); what a run computes does not depend on how many they are, but for the order of sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from bestofn.kernels.linear_attention import relu_linear_attention
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.depth.rewrite import DTYPES
from bestofn.models.errors import ModelError
from bestofn.models.residency import stored_dtype
from bestofn.models.weight_files import copy_contents, whole_folder
from bestofn.training.distributed import barrier, rank_and_ranks
from bestofn.training.generator.image_dataset import Features, Warn, prepared
from bestofn.training.optimizers import Name
from bestofn.training.optimizers.came8bit import here
from bestofn.training.optimizers.factory import Scheduled, build_optimizer
from bestofn.training.runs import Progress, Run


@dataclass(frozen=True)
class FinetuneSettings:
    """One run. Its batch is `batch_size` x `accumulate` x the number of processes."""

    folder: Path
    images: Path
    width: int
    height: int
    steps: int
    optimizer: Name = "came8bit"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    batch_size: int = 1  # images of a forward
    accumulate: int = 1  # forwards of an update, in each process
    ema: float = 0.999  # 0: what is trained last is written
    low_precision: bool = False  # products in bfloat16; weights, norms, attention's sums and the optimizer in float32
    checkpointing: bool = False  # blocks' activations are computed again on the way back
    warmup_steps: int = 100
    caption_dropout: float = 0.1
    seed: int = 0
    save_every: int = 200


@dataclass
class FinetuneState:
    """The transformer and what trains it; sharded where there are several processes."""

    transformer: Any
    optimizer: Scheduled
    mean: list[Tensor]  # this process' part of the running mean, in the order of parameters; empty without one


class Float32LinearAttention:
    """SANA's linear attention with its sums in float32 also under autocast, which would take them in bfloat16."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        query_weight, key_weight = (None if norm is None else norm.weight for norm in (attn.norm_q, attn.norm_k))
        eps = 0.0 if attn.norm_q is None else attn.norm_q.eps
        with torch.autocast(hidden_states.device.type, enabled=False):
            out = relu_linear_attention(query, key, value, attn.heads, query_weight, key_weight, eps)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


def build_finetune_state(checkpoint: Checkpoint, settings: FinetuneSettings, device: torch.device) -> FinetuneState:
    """The checkpoint's transformer in float32, spread over the processes."""
    transformer: Any = SanaTransformer2DModel.from_pretrained(
        checkpoint.path / "transformer", torch_dtype=torch.float32, use_safetensors=True
    )
    transformer.to(device).train()
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(Float32LinearAttention())
    if settings.checkpointing:
        transformer.enable_gradient_checkpointing()
    if dist.is_initialized():
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        dtype = torch.bfloat16 if settings.low_precision else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in transformer.transformer_blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(transformer, mesh=mesh, mp_policy=policy)
    inner = list(transformer.transformer_blocks.parameters())
    matrices = [p for p in inner if p.ndim >= 2 and p.shape[1] == p.shape[1:].numel() and p.shape[0] > 6]
    rate = settings.learning_rate
    optimizer = build_optimizer(
        settings.optimizer, matrices, transformer.parameters(), rate, rate, settings.weight_decay
    )
    mean = [here(p.detach()).clone() for p in transformer.parameters()] if settings.ema else []
    return FinetuneState(transformer, optimizer, mean)


def flow_loss(
    finetuned: FinetuneState, features: Features, samples: Sequence[int], settings: FinetuneSettings, shift: float
) -> Tensor:
    """Mean of ``|| velocity - (noise - latent) ||^2`` over samples that are counted through the whole run.

    Every image comes once an epoch. Its noise, its noise level and whether its caption is dropped depend on
    (seed, sample) alone. Noise levels are logit-normal under the flow shift, as in SANA's training.
    """
    latents, noises, levels, texts = [], [], [], []
    for sample in samples:
        epoch, place = divmod(sample, features.count)
        index = int(np.random.default_rng((settings.seed, 0, epoch)).permutation(features.count)[place])
        rng = np.random.default_rng((settings.seed, 1, sample))
        texts.append(features.text(None if rng.random() < settings.caption_dropout else index))
        u = 1 / (1 + np.exp(-rng.standard_normal()))
        levels.append(shift * u / (1 + (shift - 1) * u))
        latents.append(features.latent(index))
        noises.append(torch.randn(latents[-1].shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62)))))
    device = finetuned.mean[0].device if finetuned.mean else here(next(finetuned.transformer.parameters())).device
    states, masks = (pad_sequence([text[i] for text in texts], batch_first=True).to(device) for i in (0, 1))
    x, noise = torch.stack(latents).to(device), torch.stack(noises).to(device)  # (B, C, h, w)
    sigma = torch.tensor(levels, dtype=torch.float32, device=device)
    level = sigma[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.low_precision):
        noisy = (1 - level) * x + level * noise
        velocity = finetuned.transformer(noisy, states, sigma * 1000, encoder_attention_mask=masks).sample
    loss: Tensor = (velocity.float() - (noise - x)).square().mean()
    return loss


def finetune(
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    device: torch.device,
    progress: Progress,
    warn: Warn = None,
) -> FinetuneState:
    """Train, or go on training, the run of a folder. In a `torch.distributed` group every process calls it.

    `warn` gets sentences about images that are not read as a person may expect.

    Raises:
        ValueError: images, a checkpoint or an optimizer that do not serve, with the remedy.
    """
    if checkpoint.is_sprint:
        raise ModelError(f"{checkpoint.name} is distilled to few steps, which this training would undo: take SANA-1.5")
    if settings.optimizer == "muon" and dist.is_initialized():
        raise ModelError("Muon needs whole matrices: take came8bit where weights are spread over processes")
    rank, ranks = rank_and_ranks()
    run = Run(settings.folder, f"checkpoint-{rank}-of-{ranks}.pt")
    kept, size = settings.folder / "features", (settings.width, settings.height)
    features = prepared(checkpoint, settings.images, kept, size, device, warn)
    finetuned = build_finetune_state(checkpoint, settings, device)
    done = _restore(run, finetuned)
    shift = float(checkpoint.config("scheduler", "scheduler_config.json").get("flow_shift", 1.0))
    weights = list(finetuned.transformer.parameters())
    each, losses = settings.batch_size, []
    for step in range(done, settings.steps):
        total = torch.zeros((), device=device)
        for turn in range(settings.accumulate):
            first = ((step * settings.accumulate + turn) * ranks + rank) * each
            loss = flow_loss(finetuned, features, range(first, first + each), settings, shift) / settings.accumulate
            torch.autograd.backward(loss)
            total += loss.detach()
        nn.utils.clip_grad_norm_(weights, 1.0)
        finetuned.optimizer.step(min(1.0, (step + 1) / max(1, settings.warmup_steps)))
        if finetuned.mean:
            keep = min(settings.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(finetuned.mean, [here(p) for p in weights], 1 - keep)
        if ranks > 1:
            dist.all_reduce(total)
        losses.append(float(total) / ranks)
        if step + 1 == settings.steps or (step + 1) % settings.save_every == 0:
            figures = {"step": step + 1, "steps": settings.steps, "loss": float(np.mean(losses))}
            losses = []
            if rank == 0:
                progress(figures)
                run.log(**figures, ranks=ranks)
            mine = [here(p.detach()) for p in weights]
            state = {"weights": mine, "mean": finetuned.mean, "step": step + 1, "optimizer": finetuned.optimizer}
            run.save(state, between=barrier)
    return finetuned


def _restore(run: Run, finetuned: FinetuneState) -> int:
    saved = run.load()
    if saved is None:
        return 0
    with torch.no_grad():
        for p, value in zip(finetuned.transformer.parameters(), saved["weights"], strict=True):
            here(p).copy_(value)
        for mean, value in zip(finetuned.mean, saved["mean"], strict=False):
            mean.copy_(value)
    finetuned.optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def write(finetuned: FinetuneState, checkpoint: Checkpoint, out: Path, story: str) -> None:
    """Put the checkpoint with the trained transformer at ``out``, in the dtype that it was stored in.

    In a `torch.distributed` group every process calls it; the first one writes.
    """
    dtype = DTYPES[stored_dtype(checkpoint.path / "transformer")]
    values = finetuned.mean or [here(p.detach()) for p in finetuned.transformer.parameters()]
    tensors = {}
    for (name, p), value in zip(finetuned.transformer.named_parameters(), values, strict=True):
        if isinstance(p, DTensor):
            value = DTensor.from_local(value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            value = value.full_tensor()
        tensors[name] = value.to("cpu", dtype)
    if rank_and_ranks()[0] == 0:
        with whole_folder(out) as folder:
            _write(tensors, checkpoint, folder, story)
    barrier()


def _write(tensors: dict[str, Tensor], checkpoint: Checkpoint, folder: Path, story: str) -> None:
    folder.mkdir()
    for item in checkpoint.path.iterdir():
        if item.name != "transformer":
            copy_contents(item, folder / item.name)
    with torch.device("meta"):
        model: Any = SanaTransformer2DModel.from_config(checkpoint.config("transformer", "config.json"))
    model.load_state_dict(tensors, strict=False, assign=True)  # a position embedding is a buffer, which loading creates
    model.save_pretrained(folder / "transformer")
    (folder / "README.md").write_text(
        f"Made by bestofn from {checkpoint.name} (revision {checkpoint.revision}), whose licence holds for it: "
        f"{story}.\n",
        encoding="utf-8",
    )
