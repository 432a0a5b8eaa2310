"""From finished latents to verdicts: decode and judge in micro-batches of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bestofn.judge.verdict import Verdict
from bestofn.models.flops import TERA
from bestofn.models.generator import Flops, Generator
from bestofn.service.engine.clock import Clock
from bestofn.service.engine.cores import Cores
from bestofn.service.engine.heats import HeatWork, Owner, Pixels
from bestofn.service.engine.microbatch import MicroBatches
from bestofn.service.engine.protocol import HeatFailed, Judged
from bestofn.service.engine.residence import JudgeResidence
from bestofn.service.engine.sizes import Sizes
from bestofn.service.engine.slots import Group, split_due
from bestofn.service.jobs import JobSpec

Look = tuple[Group, bool]  # what the judge looks at: pictures of a size, and whether they are drafts: of one tile


@dataclass(frozen=True, slots=True)
class Latent:
    """A finished latent (C, h, w) that waits to be decoded."""

    owner: Owner
    candidate: int
    latent: Tensor
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture that waits for its verdict."""

    owner: Owner
    candidate: int
    pixels: Pixels
    prompt: str
    draft: bool = False


class Finishing:
    """The two stages after denoising.

    Pictures of one size are decoded together, and pictures of one size and one prompt judged together: then all rows
    of the judge's batch are equally long, and a verdict does not depend on how long other prompts are.
    """

    def __init__(
        self,
        generator: Generator,
        judge: JudgeResidence,
        heats: Mapping[Owner, HeatWork],
        sizes: Sizes,
        flops: Callable[[int, int], Flops],
        cores: Cores,
    ) -> None:
        """
        Args:
            flops: of one sample of a width and height.
            cores: how many batches at once.
            heats: the heats in work; entries are removed by the owner of the mapping only.
        """
        self._generator = generator
        self._judge = judge
        self._heats = heats
        self._sizes = sizes
        self._flops = flops
        self._latents: dict[Group, list[Latent]] = {}
        self._pictures: dict[tuple[Look, str], list[Picture]] = {}
        self._decoding: MicroBatches[Tensor, Pixels, Group] = MicroBatches(
            "decoding", self._decode_batch, self._decode_size, cores, pinned=sizes.strict
        )
        self._judging: MicroBatches[Picture, Verdict, Look] = MicroBatches(
            "judging", self._judge_batch, self._judge_size, cores, pinned=sizes.strict
        )

    def check(self, spec: JobSpec) -> None:
        """Raises ValueError for a prompt that the judge cannot read, if that can be known without loading it."""
        if self._judge.shared:
            judge = self._judge.get()
            judge.ids(spec.prompt, judge.tiles(spec.width, spec.height))

    def add(self, group: Group, latent: Latent) -> None:
        self._heats[latent.owner].drawing -= 1
        self._heats[latent.owner].decoding += 1
        self._latents.setdefault(group, []).append(latent)

    def drop(self, owner: Owner) -> None:
        """Forgets a heat's latents and pictures."""
        for group, latents in self._latents.items():
            self._latents[group] = [latent for latent in latents if latent.owner != owner]
        for key, pictures in self._pictures.items():
            self._pictures[key] = [picture for picture in pictures if picture.owner != owner]

    def run(self) -> Iterator[Judged | HeatFailed]:
        """Decodes and judges what is due. Whoever is told of a failed heat drops it before asking for more."""
        for group in list(self._latents):
            yield from self._decode(group)
        for look, prompt in list(self._pictures):
            yield from self._give_verdicts(look, prompt)

    def _decode(self, group: Group) -> Iterator[HeatFailed]:
        waiting = self._latents.pop(group, [])
        last = any(self._heats[item.owner].drawing == 0 for item in waiting)
        due, later = split_due(waiting, self._decoding.size(group), flush=last)
        if later:
            self._latents[group] = later
        if not due:
            return
        self._judge.give_way()
        with Clock(self._generator.device) as clock:
            pictures = self._decoding.run([item.latent for item in due], group)
        flops = self._flops(*group).decode
        for item, pixels in zip(due, pictures, strict=True):
            work = self._heats.get(item.owner)
            if work is None:
                continue
            if pixels is None:
                yield HeatFailed(*item.owner, _too_large("decoding", group))
                continue
            work.decoding -= 1
            work.seconds["decode"] += clock.seconds / len(due)
            work.tflops += flops / TERA
            work.warn(self._decoding.shrunk(group))
            prompt = work.heat.job.prompt
            picture = Picture(item.owner, item.candidate, pixels, prompt, item.draft)
            self._pictures.setdefault(((group, item.draft), prompt), []).append(picture)

    def _give_verdicts(self, look: Look, prompt: str) -> Iterator[Judged | HeatFailed]:
        waiting = self._pictures.pop((look, prompt), [])
        last = any(work.drawing + work.decoding == 0 for work in (self._heats[item.owner] for item in waiting))
        judge = self._judge.get()
        due, later = split_due(waiting, self._judging.size(look), flush=last)
        if later:
            self._pictures[look, prompt] = later
        if not due:
            return
        group, draft = look
        try:
            flops = judge.flops(*group, prompt, one_tile=draft)
            with Clock(self._generator.device) as clock:
                verdicts = self._judging.run(due, look)
        except ValueError as error:  # the prompt is too long for the judge
            yield from (HeatFailed(*owner, str(error)) for owner in dict.fromkeys(item.owner for item in due))
            return
        unknown = judge.unknown_words(prompt)
        for item, verdict in zip(due, verdicts, strict=True):
            work = self._heats.get(item.owner)
            if work is None:
                continue
            if verdict is None:
                yield HeatFailed(*item.owner, _too_large("judging", group))
                continue
            work.seconds["judge"] += clock.seconds / len(due)
            work.counts["judge"] += 1
            work.tflops += flops / TERA
            work.warn(self._judging.shrunk(look))
            if unknown:
                name = work.heat.job.judge.name
                work.warn(f"prompt: the judge {name} has never learned the words {', '.join(unknown[:12])}")
            note = work.drafted if draft else work.judged
            yield Judged(*item.owner, *note(item.candidate, verdict, item.pixels))

    def _decode_size(self, group: Group) -> int:
        return self._sizes.batch(self._sizes.decode, self._flops(*group).decode / TERA)

    def _decode_batch(self, latents: Sequence[Tensor]) -> Sequence[Pixels]:
        return list(self._generator.decode(torch.stack(list(latents))).numpy())

    def _judge_size(self, look: Look) -> int:
        group, draft = look
        return self._sizes.batch(self._sizes.judge, self._judge.get().flops(*group, one_tile=draft) / TERA)

    def _judge_batch(self, pictures: Sequence[Picture]) -> Sequence[Verdict]:
        return self._judge.get().judge(
            [item.pixels for item in pictures], [item.prompt for item in pictures], one_tile=pictures[0].draft
        )


def _too_large(doing: str, group: Group) -> str:
    return f"{doing} one picture of {group[0]}x{group[1]} pixels needs more memory than is free: ask for a smaller one"
