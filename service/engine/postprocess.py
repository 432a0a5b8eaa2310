"""From finished latents to verdicts: decode and judge in micro-batches of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import structlog
import torch
from torch import Tensor

from bestofn.judge.calibration import bounded
from bestofn.judge.checker import CheckFailed
from bestofn.judge.verdict import BROKEN, UNSAFE, Verdict
from bestofn.models.defaults import Flops
from bestofn.models.flops import TERA
from bestofn.models.sampling import LoadedGenerator
from bestofn.service.core.jobs import Heat, JobSpec
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.heat_state import HeatWork, Owner, shrunk
from bestofn.service.engine.items import BatchKey, Decoded, Image, Latent, Queued, SentImages, too_large
from bestofn.service.engine.judge_residency import JudgeResidency
from bestofn.service.engine.microbatch import MicroBatches
from bestofn.service.engine.protocol import HeatFailed, Judged
from bestofn.service.engine.scheduler import Size, split_due
from bestofn.service.engine.side_stream import SideStream
from bestofn.service.engine.timing import Clock

log = structlog.get_logger()


class Postprocess:
    """The two stages after denoising.

    Images of one size are decoded together. Images of one size and one prompt are judged together: all rows of
    the judge's batch are then equally long. Verdicts do not depend on other prompts. With rule lower_bound an image
    solved in full goes on to the second judge. An image checker sees each batch of the first judge.

    On a GPU both stages overlap denoising and are read a tick later. Images stay on the device; only images that are
    shown are copied to the host.
    """

    def __init__(
        self,
        generator: LoadedGenerator,
        judge: JudgeResidency,
        heats: Mapping[Owner, HeatWork],
        sizes: Sizes,
        flops: Callable[[int, int], Flops],
        batch_pool: BatchPool,
        side_stream: SideStream,
        make_room: Callable[[], bool],
        encoder: ThreadPoolExecutor,
    ) -> None:
        """
        Args:
            flops: FLOPs of one sample of a width and height.
            batch_pool: pool of parallel batches.
            side_stream: stream of both stages.
            make_room: frees memory where a single image does not fit.
            encoder: threads that make small images, 14 ms each, while the device works.
            heats: heats in the engine; only the owner of the mapping removes entries.
        """
        self._generator = generator
        self._judge = judge
        self._heats = heats
        self._sizes = sizes
        self._flops = flops
        self._side_stream = side_stream
        self._sent = SentImages()
        self._encoder = encoder
        self._latents: dict[Size, list[Latent]] = {}
        self._decoded: list[Queued[Latent, Decoded, Size]] = []
        self._images: dict[tuple[BatchKey, str], list[Image]] = {}
        self._judged: list[Queued[Image, Any, BatchKey]] = []
        self._decoding: MicroBatches[Tensor, Tensor, Size] = MicroBatches(
            "decoding", self._decode_batch, self._decode_size, batch_pool, make_room, pinned=sizes.strict
        )
        self._judging: MicroBatches[Image, Any, BatchKey] = MicroBatches(
            "judging", self._judge_batch, self._judge_size, batch_pool, make_room, pinned=sizes.strict
        )

    def warm_up(self, size: Size) -> None:
        """One batch of each stage, whose kernels are built meanwhile."""
        width, height = size
        with self._side_stream.queue():
            pixels = torch.zeros((height, width, 3), dtype=torch.uint8, device=self._generator.device)
            blank = Image(("", 0), 0, pixels, "")
            latent = torch.zeros(self._generator.latent_shape(*size), device=self._generator.device)
            self._decoding.run([latent] * self._decoding.size(size), size)
            for number, first in enumerate((None, Verdict("other", 0.0, 0.0))[: self._judge.count]):
                key = BatchKey(size, judge=number)
                self._judging.run([replace(blank, first=first)] * self._judging.size(key), key)

    def check(self, spec: JobSpec) -> None:
        """Raises ValueError for a prompt that a judge cannot read, if that can be known without loading it."""
        for number in range(len(spec.judges)) if self._judge.shared else ():
            self._judge.get(number).check(spec.prompt, spec.width, spec.height)

    def add(self, size: Size, latent: Latent) -> None:
        self._heats[latent.owner].drawing -= 1
        self._heats[latent.owner].decoding += 1
        self._latents.setdefault(size, []).append(latent)

    def read(self, owner: Owner, heat: Heat) -> None:
        """Starts with the sent images of a heat."""
        self._sent.add(owner, heat)

    def _add_sent(self, owner: Owner, images: Mapping[int, Tensor]) -> None:
        """Adds the sent images of a heat, (H, W, 3) uint8 on the host by candidate."""
        work = self._heats[owner]
        spec, work.decoding = work.heat.job, 0
        for candidate, pixels in images.items():
            small = self._encoder.submit(shrunk, pixels) if spec.has_thumbnail(candidate) else None
            image = Image(owner, candidate, pixels, spec.prompt, small=small, sent=True)
            self._images.setdefault((self._sent_key(pixels, 0), spec.prompt), []).append(image)

    def _sent_key(self, pixels: Tensor, number: int) -> BatchKey:
        return BatchKey(self._judge.get(number).group(pixels.shape[1], pixels.shape[0]), judge=number, sent=True)

    def drop(self, owner: Owner) -> None:
        """Forgets a heat's latents and images."""
        self._sent.drop(owner)
        for size, latents in self._latents.items():
            self._latents[size] = [latent for latent in latents if latent.owner != owner]
        for decoded in self._decoded:
            decoded.drop(owner)
        for key, images in self._images.items():
            self._images[key] = [image for image in images if image.owner != owner]
        for judged in self._judged:
            judged.drop(owner)

    def run(self, *, idle: bool) -> Iterator[Judged | HeatFailed]:
        """Decode and judge full batches. After HeatFailed, call `drop(owner)` before resuming the iterator.

        `idle`: there is nothing to denoise meanwhile.
        """
        for read in self._sent.read(idle=idle):
            if isinstance(read, HeatFailed):
                yield read
            else:
                self._add_sent(*read)
        decoded, judged = self._decoded, self._judged
        self._decoded, self._judged = [], []
        for size in list(self._latents):
            self._decode(size)
        if not self._side_stream.late:
            decoded, self._decoded = self._decoded, []
        for latents in decoded:
            yield from self._read_images(latents)
        for number in range(self._judge.count):  # the second judges what the first has judged
            for key, prompt in [known for known in self._images if known[0].judge == number]:
                yield from self._ask(key, prompt)
            if not self._side_stream.late:
                judged += [queued for queued in self._judged if queued.what.judge == number]
                self._judged = [queued for queued in self._judged if queued.what.judge != number]
            for images in [queued for queued in judged if queued.what.judge == number]:
                yield from self._read_verdicts(images)

    def _decode(self, size: Size) -> None:
        waiting = self._latents.pop(size, [])
        last = any(self._heats[item.owner].drawing == 0 for item in waiting)
        due, later = split_due(waiting, self._decoding.size(size), flush=last)
        if later:
            self._latents[size] = later
        if not due:
            return
        self._judge.offload()
        with self._side_stream.queue(), Clock(self._generator.device) as clock:
            images = self._decoding.run([item.latent for item in due], size)
            rows = [
                torch.stack([item.latent.isfinite().all(), (pixels != pixels[0, 0]).any()])
                for item, pixels in zip(due, images, strict=True)
                if pixels is not None
            ]
            checks = iter(torch.stack(rows).to("cpu", non_blocking=True) if rows else ())
            results: list[Decoded | None] = []
            for item, pixels in zip(due, images, strict=True):
                if pixels is None:
                    results.append(None)
                    continue
                shown = self._heats[item.owner].heat.job.has_thumbnail(item.candidate)
                copy = pixels.to("cpu", non_blocking=True) if shown else None
                results.append(Decoded(pixels, copy, next(checks)))
        self._decoded.append(Queued(due, results, clock, size))

    def _read_images(self, queued: Queued[Latent, Decoded, Size]) -> Iterator[Judged | HeatFailed]:
        size, share = queued.what, 1 / max(1, len(queued.items))
        flops = self._flops(*size).decode
        for item, decoded in queued.read():
            work = self._heats.get(item.owner)
            if work is None:
                continue
            if decoded is None:
                yield HeatFailed(*item.owner, too_large("decoding", size))
                continue
            work.decoding -= 1
            work.seconds["decode"] += queued.clock.seconds * share
            work.tflops += flops / TERA
            work.warn(self._decoding.shrunk(size))
            small = None if decoded.copy is None else self._encoder.submit(shrunk, decoded.copy)
            finite, shows = decoded.checks.tolist()
            if not (finite and shows):
                reason = (
                    "decoding gave an image of one colour" if finite else "denoising gave numbers that are not finite"
                )
                if not work.note_unsound(item.candidate, reason, item.draft):
                    yield HeatFailed(
                        *item.owner, f"{reason}, for all candidates: try another dtype or model", final=True
                    )
                    continue
                # What such a latent decodes to is not checked, so a deployment with a checker does not return it.
                hidden = not finite and self._judge.checker() is not None
                broken = work.no_verdict(item.draft, UNSAFE if hidden else BROKEN)
                shown = None if hidden else small
                yield Judged(*item.owner, *work.judged(item.candidate, broken, decoded.pixels, shown, item.draft))
                continue
            prompt = work.heat.job.prompt
            image = Image(item.owner, item.candidate, decoded.pixels, prompt, item.draft, small=small)
            self._images.setdefault((BatchKey(size, item.draft), prompt), []).append(image)

    def _ask(self, key: BatchKey, prompt: str) -> Iterator[HeatFailed]:
        waiting = self._images.pop((key, prompt), [])
        last = any(work.drawing + work.decoding == 0 for work in (self._heats[item.owner] for item in waiting))
        due, later = split_due(waiting, self._judging.size(key), flush=last)
        if later:
            self._images[key, prompt] = later
        if not due:
            return
        try:
            self._judge.get(key.judge).flops(*key.size, prompt, one_tile=key.draft)
            with self._side_stream.queue(), Clock(self._generator.device) as clock:
                results = self._judging.run(due, key)
        except ValueError as error:  # the prompt is too long for the judge
            yield from (HeatFailed(*owner, str(error), True) for owner in dict.fromkeys(item.owner for item in due))
            return
        self._judged.append(Queued(due, results, clock, key))

    def _read_verdicts(self, queued: Queued[Image, Any, BatchKey]) -> Iterator[Judged | HeatFailed]:
        key, share = queued.what, 1 / max(1, len(queued.items))
        judge = self._judge.get(key.judge)
        checker = self._judge.checker() if key.judge == 0 else None
        for place, (item, row) in enumerate(queued.read()):
            if place and row is not None and not self._judge.answered(key.judge, row):
                self._judged.append(queued.since(place, self._heats))
                return
            work = self._heats.get(item.owner)
            if work is None:
                continue
            if row is None:
                yield HeatFailed(*item.owner, too_large("judging", key.size))
                continue
            spec = work.heat.job
            work.seconds["judge"] += queued.clock.seconds * share
            work.counts["judge"] += 1
            work.tflops += judge.flops(*key.size, item.prompt, one_tile=key.draft) / TERA
            work.warn(self._judging.shrunk(key))
            if unknown := judge.unknown_words(item.prompt):
                name = spec.judges[key.judge][0].name
                work.warn(f"prompt: the judge {name} has never learned the words {', '.join(unknown[:12])}")
            if checker is not None:
                row, checked = row
                work.tflops += checker.flops() / TERA
                try:
                    unsafe = checker.unsafe(checked)
                except CheckFailed as error:
                    log.warning("no check of an image", job=item.owner[0], error=str(error))
                    yield HeatFailed(*item.owner, "the image checker gave no answer: the worker's log has the cause")
                    continue
                if unsafe:
                    yield self._refused(item, work)
                    continue
            verdict = judge.verdict(row)
            if verdict.broken and not work.note_unsound(item.candidate, "the judge gave no verdict", key.draft):
                yield HeatFailed(
                    *item.owner, "the judge gave no verdict on any candidate: the worker's log has the cause"
                )
                continue
            if item.first is not None:
                verdict = bounded(item.first, verdict, (spec.calibration, spec.second_calibration))
            elif len(spec.judges) > 1 and not key.draft:
                then = self._sent_key(item.pixels, 1) if key.sent else key._replace(judge=1)
                self._images.setdefault((then, item.prompt), []).append(replace(item, first=verdict))
                continue
            yield Judged(*item.owner, *work.judged(item.candidate, verdict, item.pixels, item.small, item.draft))

    def _refused(self, item: Image, work: HeatWork) -> Judged | HeatFailed:
        """The event of an unsafe image, which is dropped here with its thumbnail."""
        work.unsafe[item.draft] += 1
        if not work.fruitful(item.draft):
            return HeatFailed(
                *item.owner, "no candidate has a safe image with a verdict: the worker's log has the cause"
            )
        verdict = work.no_verdict(item.draft, UNSAFE)
        return Judged(*item.owner, *work.judged(item.candidate, verdict, item.pixels, None, item.draft))

    def _decode_size(self, size: Size) -> int:
        return self._sizes.images(*size, self._flops(*size).decode / TERA)

    def _decode_batch(self, latents: Sequence[Tensor]) -> Sequence[Tensor]:
        images = self._generator.decode(torch.stack(list(latents)), stay=True)
        return [image.clone() for image in images]  # so that one of them does not hold the memory of all

    def _judge_size(self, key: BatchKey) -> int:
        judge = self._judge.get(key.judge)
        most = min(self._sizes.judge, judge.max_batch or self._sizes.judge)
        return self._sizes.batch(most, judge.flops(*key.size, one_tile=key.draft) / TERA)

    def _judge_batch(self, images: Sequence[Image]) -> Sequence[Any]:
        pixels, prompts = [item.pixels for item in images], [item.prompt for item in images]
        judge = self._judge.get(0 if images[0].first is None else 1)
        # PIL is the faster one on a CPU, where it makes the same tiles. Sent images are on the host, of several sizes.
        cut_there = (self._side_stream.late or self._generator.device.type != "cpu") and not images[0].sent
        given = torch.stack(pixels) if cut_there else [image.numpy() for image in pixels]
        rows = list(judge.ask(given, prompts, one_tile=images[0].draft, non_blocking=True))
        checker = self._judge.checker() if images[0].first is None else None
        return rows if checker is None else list(zip(rows, checker.ask(given), strict=True))
