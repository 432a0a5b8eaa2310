"""Draws, judges and evaluates what a pool is missing, with one thread a process, in this process if it is the only one.

B candidates, C latent channels, (h, w) latent grid.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bestofn.evaluation.pool import CHUNK, DIGITS, Chunk, ChunkKey, Pool, SampleRequest, Source
from bestofn.evaluation.tasks import Task, digest
from bestofn.judge.interface import PointwiseJudge
from bestofn.models.generator import Generator as SanaGenerator
from bestofn.models.lora import Lora, listed
from bestofn.models.sampling import LoadedGenerator, draw, load_generator
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.weight_files import whole_file
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import load_settings
from bestofn.service.engine.compilation import compile_blocks, low_precision
from bestofn.service.engine.judge_loader import load_judge

BATCH = 16  # candidates of one forward


@cache
def parts(model: str, lora: str, judge: str, device: str) -> tuple[LoadedGenerator, PointwiseJudge]:
    """Generator with LoRAs and judge on a device, once a process; in fast mode on a CPU with compiled blocks."""
    there, settings = torch.device(device), load_settings()
    low = there.type == "cpu" and low_precision(settings.reproducible)
    generator = load_generator(model, there, loras=[Lora.resolve(text) for text in listed(lora)], low_precision=low)
    if low and isinstance(generator, SanaGenerator):
        torch.set_num_threads(1)  # as in the pool's processes, which find the compiled blocks in the cache
        compile_blocks(generator, settings.data_dir, [BATCH]).wait()
    return generator, load_judge(judge, there, key=settings.judge_api_key)


def fill(pool: Pool, requests: Sequence[SampleRequest], processes: int, progress: Callable[[int, int], None]) -> None:
    """Draw, judge and evaluate what is lacking; the file grows by a line a chunk.

    Args:
        pool: its source says what draws and judges, and which folder keeps the latents.
        requests: drawn in this order.
        processes: each with one thread; 1 is this process, which has generator and judge already.
        progress: called with chunks done and wanted.

    Raises:
        SetupError: a process was killed, or the judge gave no verdict on an image, whose chunk is not kept.
    """
    missing = pool.missing(requests)
    total = len({key for request in requests for key in request.chunks()})
    done = total - len(missing)
    progress(done, total)
    if not missing:
        return
    with contextlib.closing(_here(pool, missing) if processes == 1 else _there(pool, missing, processes)) as drawn:
        for key, chunk in drawn:
            pool.append(key, chunk)
            done += 1
            progress(done, total)


def _here(pool: Pool, missing: Sequence[ChunkKey]) -> Generator[tuple[ChunkKey, Chunk]]:
    """Chunks drawn one by one in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # verdicts depend on it, in their last digits
    try:
        for key in missing:
            yield key, _draw(pool.source, pool.source.tasks[key.number], key, _latents_file(pool.source, key))
    finally:
        torch.set_num_threads(threads)


def _there(pool: Pool, missing: Sequence[ChunkKey], processes: int) -> Generator[tuple[ChunkKey, Chunk]]:
    """Chunks drawn in other processes, as they are done."""
    tasks, source = pool.source.tasks, replace(pool.source, tasks=())
    with _workers(processes) as workers:
        with _interrupts_later():
            futures = {
                workers.submit(_draw, source, tasks[key.number], key, _latents_file(pool.source, key)): key
                for key in missing
            }
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise SetupError(
                    f"a process that draws was killed, mostly for lack of memory: take fewer --processes than "
                    f"{processes}. What is drawn is kept in {pool.path}"
                ) from error


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that an error, or Ctrl-C, ends with what they draw, instead of waiting for all that was asked for."""
    others = set(active_children())
    # spawn: a forked child would inherit the threads' state of torch
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin) as workers:
        try:
            yield workers
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            ended = set(active_children()) - others
            for child in ended:
                child.terminate()
            for child in ended:
                child.join()
            raise


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; processes started in it never hear of it: that is for their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """A process of the pool: one thread, and no longer alive than its parent."""
    torch.set_num_threads(1)
    if parent := parent_process():
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _latents_file(source: Source, key: ChunkKey) -> Path | None:
    """Where the latents of a chunk are kept, if they are: (CHUNK, C, h, w) float16."""
    if source.latents is None:
        return None
    folder = source.latents / f"{source.model_revision}-{digest(source.tasks)}" / str(key.config).replace(" ", "-")
    return folder / f"{key.number}-{key.start}.safetensors"


@torch.inference_mode()
def _draw(source: Source, task: Task, key: ChunkKey, kept: Path | None) -> Chunk:
    if kept is not None and kept.is_file():
        latents = _read(kept)
    else:
        latents = _latents(source, task, key)
        if kept is not None:
            latents = latents.half()  # what is kept is what is judged
            kept.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(kept) as part:
                save_file({"latents": latents.contiguous()}, part)
    generator, verifier = parts(source.model, source.lora, source.judge, source.device)
    chunk = Chunk([], [], [])
    for start in range(0, CHUNK, BATCH):
        batch = latents[start : start + BATCH].to(source.device, torch.float32)
        images = generator.decode(batch).numpy()
        verdicts = verifier.judge(list(images), [task.prompt] * len(images))
        if silent := sum(verdict.broken for verdict in verdicts):
            raise SetupError(
                f"the judge {source.judge} gave no verdict on {silent} of {len(images)} images: "
                "run the same command again when it answers; what was judged before is kept"
            )
        chunk.yes.extend(round(verdict.yes_logit, DIGITS) for verdict in verdicts)
        chunk.no.extend(round(verdict.no_logit, DIGITS) for verdict in verdicts)
        if task.spec is not None:
            chunk.correct.extend(int(evaluate(image, task.spec).correct) for image in images)
    return chunk


def _latents(source: Source, task: Task, key: ChunkKey) -> Tensor:
    """Finished latents (CHUNK, C, h, w) of a chunk."""
    generator, _ = parts(source.model, source.lora, source.judge, source.device)
    first = task.seed + key.start

    def batch(start: int) -> Tensor:
        steps, after = key.config.steps, key.config.after
        seeds = range(start, start + BATCH)
        return draw(generator, task.prompt, seeds, num_inference_steps=steps, preview_after=after)

    return torch.cat([batch(start) for start in range(first, first + CHUNK, BATCH)])


def _read(path: Path) -> Tensor:
    try:
        latents: Tensor = load_file(path)["latents"]
    except (SafetensorError, KeyError) as error:
        raise SetupError(f"{path} holds no latents ({error}): delete it, and it is drawn again") from error
    return latents
