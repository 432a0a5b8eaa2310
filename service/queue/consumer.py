"""The queue for a worker: claims, leases and completions of heats of one (model, judge) pair."""

import hashlib
import json
from collections.abc import Iterable, Sequence

import structlog

from bestofn.service.core.early_stopping import Prefix, decide
from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.finals import FinalsOutcome, entrants, reordered
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, Priority
from bestofn.service.core.scheduling import DeliveryAction, delivery_action
from bestofn.service.core.schemas import FinalsProgress
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue.claims import Claim, Entry, HeatProgress, Judgement, number
from bestofn.service.queue.codec import (
    pack_candidate,
    pack_finals,
    pack_heat,
    pack_leaders,
    read_spec,
    reading,
    unpack_heat,
    unpack_leaders,
)
from bestofn.service.queue.image_store import stage, with_images
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import GROUP, PRIORITIES, pair_id
from bestofn.service.queue.scripts import Argument
from bestofn.service.telemetry import metrics

MOST_PENDING = 1000
RECLAIM_SCAN = 10  # entries of a stream whose leases one call looks at

log = structlog.get_logger()


class QueueConsumer:
    """Consumer of the ready streams of one worker's pair. Methods raise redis' errors when the server is away."""

    def __init__(self, queue: Queue, info: WorkerInfo) -> None:
        self.queue = queue
        self.info = info
        self.pair = pair_id(info.schema_version, *info.revisions)
        self.worker = info.worker
        self._ready = {priority: queue.keys("ready", self.pair, priority) for priority in PRIORITIES}
        self._reclaim_from: dict[Priority, Argument] = dict.fromkeys(PRIORITIES, "-")
        self._heartbeat = 0  # the last one, by the server's clock in ms
        self._reclaim_not_before = 0

    async def heartbeat(
        self,
        held: Iterable[Claim],
        seconds: float,
        state: str = "ready",
        tflops_per_second: float | None = None,
        blocks: str | None = None,
    ) -> set[str]:
        """Announces the worker for `seconds` (0: it leaves) and renews the leases on `held`.

        Args:
            held: claims of this worker.
            seconds: after which the announcement lapses.
            state: what it does, as /status shows it.
            tflops_per_second, blocks: as of `WorkerInfo`.

        Returns:
            Entries among those held that another worker has taken over.
        """
        info = self.info.model_copy(update={"state": state, "tflops_per_second": tflops_per_second, "blocks": blocks})
        leases = [part for claim in held for part in (claim.entry.priority, claim.entry.id)]
        time, *lost = await self.queue.scripts(
            "heartbeat",
            *leases,
            pair=self.pair,
            worker=self.worker,
            capacity=info.capacity,
            info=info.model_dump_json(),
            ttl=int(1000 * seconds),
        )
        lease = int(1000 * self.queue.settings.lease_seconds)
        if self._heartbeat and not 0 <= time - self._heartbeat <= lease:
            self._reclaim_not_before = time + lease
        self._heartbeat = time
        return {entry.decode() for entry in lost}

    async def store_tokenizers(self, files: Sequence[bytes]) -> None:
        """Store tokenizer.json files under their hashes, which the worker's info names."""
        for content in files:
            key = self.queue.keys("tokenizer", hashlib.sha256(content).hexdigest())
            if not await self.queue.redis.exists(key):  # a full server refuses to write even what is there
                async with self.queue.transfer(len(content)) as redis:
                    await redis.set(key, content, nx=True)

    async def claim(self, count: int, block_seconds: float) -> list[Claim]:
        """Claim at most `count` new heats, interactive ones first. Wait at most `block_seconds` for the first."""
        while True:
            entries: list[Entry] = []
            for priority in PRIORITIES:
                if len(entries) < count:
                    entries += await self._read([priority], count - len(entries), None)
            if not entries and block_seconds > 0:
                entries = await self._read(PRIORITIES, 1, block_seconds)
            claims = await self._start(entries)
            if claims or not entries:
                return claims

    async def reclaim(self, lease_seconds: float) -> list[Claim]:
        """Claim a heat whose lease of `lease_seconds` has run out; none soon after a pause of the own heartbeats."""
        for priority in PRIORITIES:
            self._reclaim_from[priority], *found = await self.queue.scripts(
                "reclaim",
                pair=self.pair,
                worker=self.worker,
                priority=priority,
                lease=int(1000 * lease_seconds),
                count=RECLAIM_SCAN,
                heartbeat=self._heartbeat,
                pause=int(1000 * self.queue.settings.lease_seconds),
                not_before=self._reclaim_not_before,
                after=self._reclaim_from[priority],
            )
            for entry, fields in found:
                named = dict(zip(fields[::2], fields[1::2], strict=True))
                return await self._start([Entry.read(priority, entry, named)])
        return []

    async def complete(self, claim: Claim, outcome: HeatOutcome) -> bool:
        """Record a finished heat. After the last heat the job ends, or its finals are dispatched.

        Only images of the job's candidates in play are kept.

        Returns:
            Whether it was the first completion of this heat.

        Raises:
            ImageNotStored: the images cannot be written into the images folder.
            JobUnreadable: the job's fields cannot be read.
        """
        spec, redis, keys = claim.heat.job, self.queue.redis, self.queue.keys
        job, heat = claim.key
        staged = keys("staged", job, heat, self.worker)
        stored: dict[int, bytes] = {}
        inline: list[Argument] = []
        while True:
            known = await redis.hmget(keys("job", job), ["version", "leaders", "decided", "done"])
            version, text, decided, done = known
            with reading("the job's stored record"):
                before = Prefix(int(decided or 0), tuple(unpack_leaders(spec, text or b"[]")))
                done = int(done or 0)
            finished = {} if spec.stop is None else await self._ahead(spec, before.heats)
            decision = decide(spec, before, outcome, finished, done)
            kept = sorted(decision.in_play & {candidate.index for candidate in outcome.candidates})
            new = {index: outcome.images[index] for index in kept if index not in stored}
            stored |= await self.queue.images.put(job, self.worker, new)
            images = {index: stored[index] for index in kept}
            if images and not inline and not await stage(self.queue, staged, images):
                inline = [part for image in images.items() for part in image]
            reply = await self.queue.scripts(
                "complete",
                *inline,
                **self._entry(claim.entry),
                record=pack_heat(outcome),
                version=version or 0,
                leaders=pack_leaders(decision.prefix.leaders),
                staged=staged,
                kept=json.dumps(kept),
                in_play=json.dumps(sorted(decision.in_play)),
                steps=claim.heat.steps,
                forwards=outcome.usage.transformer_forwards,
                decided=decision.prefix.heats,
                stopped=decision.prefix.stopped or "",
                finals=int(decision.finals),
            )
            match reply:
                case b"conflict":
                    inline = []
                case b"unstaged":
                    inline = [part for image in images.items() for part in image]
                case _:
                    return bool(reply == b"completed")

    async def finals_entrants(self, job: JobSpec) -> tuple[list[int], dict[int, bytes]]:
        """Entrants of a job's finals, best first, and their images. Raises ImageNotFound if an image has expired."""
        order = [candidate.index for candidate in entrants(job, await self._leaders(job))]
        return order, {index: await self.queue.image(job.id, index) for index in order}

    async def publish_finals(self, claim: Claim, progress: FinalsProgress) -> bool:
        """Publish the state of the finals; False if this worker does not hold them any more."""
        reply = await self.queue.scripts("publish_finals", **self._entry(claim.entry), data=progress.model_dump_json())
        return bool(reply)

    async def complete_finals(self, claim: Claim, finals: FinalsOutcome) -> bool:
        """Record the result of the finals, which ends the job; returns whether it was the first completion."""
        spec, entry = claim.heat.job, claim.entry
        leaders = reordered(await self._leaders(spec), finals)
        reply = await self.queue.scripts(
            "complete_finals",
            **self._entry(entry),
            record=pack_finals(finals),
            leaders=pack_leaders(leaders),
            in_play=json.dumps([candidate.index for candidate in leaders[: spec.top_k]]),
        )
        return bool(reply == b"completed")

    async def give_back(self, claim: Claim, outcome: str, reason: str = "") -> None:
        """Return an unfinished heat to the queue.

        Args:
            claim: a claim of this worker.
            outcome: `released` (no delivery spent), `retried` (one spent) or `dead_lettered` (its job fails).
            reason: the failure's reason, for the job's caller.
        """
        await self._give_back(claim.entry, claim.deliveries, outcome, reason)

    async def set_deliveries(self, claim: Claim, deliveries: int) -> None:
        """Set the delivery count of a held heat: a heat that has not run is not to blame if its worker dies."""
        await self.queue.scripts("set_deliveries", **self._entry(claim.entry), deliveries=deliveries)

    async def report(self, job: str, progress: Sequence[HeatProgress], judgements: Iterable[Judgement] = ()) -> bool:
        """Publish progress and new candidates of a job; returns whether the job still needs candidates."""
        arguments: list[Argument] = []
        for part in progress:
            arguments += [part.heat, part.judged, part.steps, part.forwards]
        for judgement in judgements:
            candidate = judgement.candidate
            arguments += [candidate.index, pack_candidate(candidate), judgement.thumbnail or b""]
        return bool(await self.queue.scripts("report", *arguments, job=job, heats=len(progress)))

    async def leave(self, held: Iterable[Claim]) -> None:
        """Give back all heats, also those whose claim never reached this worker, and withdraw the worker's info."""
        for claim in held:
            await self.give_back(claim, "released")
        for priority, ready in self._ready.items():
            pending = await self.queue.redis.xpending_range(ready, GROUP, "-", "+", MOST_PENDING, self.worker)
            for row in pending:
                for entry, fields in await self.queue.redis.xrange(ready, row["message_id"], row["message_id"]):
                    known = Entry.read(priority, entry, fields)
                    deliveries = number(fields, b"deliveries", 0) + row["times_delivered"]
                    await self._give_back(known, deliveries, "released")
        await self.heartbeat((), 0, "draining")

    async def _read(self, priorities: Sequence[Priority], count: int, block_seconds: float | None) -> list[Entry]:
        block = None if block_seconds is None else max(1, int(1000 * block_seconds))
        streams = {self._ready[priority]: ">" for priority in priorities}
        reply = await self.queue.redis.xreadgroup(GROUP, self.worker, streams, count=count, block=block)
        names = {ready.encode(): priority for priority, ready in self._ready.items()}
        return [Entry.read(names[stream], entry, fields) for stream, found in reply for entry, fields in found]

    async def _start(self, entries: Sequence[Entry]) -> list[Claim]:
        if not entries:
            return []
        arguments: list[Argument] = []
        for entry in entries:
            arguments += [entry.priority, entry.id, entry.job, entry.heat, entry.count]
        claims = []
        replies = await self.queue.scripts("start", *arguments, pair=self.pair, worker=self.worker)
        for entry, (deliveries, spec, traceparent, waited) in zip(entries, replies, strict=True):
            if not deliveries:
                continue
            try:
                with reading("an entry of the job"):
                    heat, trace = read_spec(spec).heat(entry.heat), (traceparent or b"").decode()
                held = await with_images(self.queue, heat)
            except JobUnreadable as error:
                await self._refuse(entry, deliveries, error.detail)
            else:
                if held is not None:  # else its job has ended, and its entry goes once the lease lapses
                    claims.append(Claim(entry, held, deliveries, trace, waited / 1000))
        return claims

    async def _refuse(self, entry: Entry, deliveries: int, reason: str) -> None:
        """Leave a heat that cannot be read to live workers, which may run another version, once its lease lapses.

        Its job fails when all of them have refused it, or its deliveries are spent.
        """
        again = delivery_action(deliveries, self.queue.settings.max_deliveries) is DeliveryAction.RUN
        tried = not await self.queue.scripts("refuse", **self._entry(entry))
        outcome = "dead_lettered" if tried or not again else "retried"
        metrics.HEATS.labels(outcome).inc()
        log.warning("heat", job_id=entry.job, heat=entry.heat, deliveries=deliveries, outcome=outcome, reason=reason)
        if outcome == "dead_lettered":
            metrics.DEAD.inc()
            await self._give_back(entry, deliveries, outcome, reason)

    async def _ahead(self, spec: JobSpec, decided: int) -> dict[int, tuple[Candidate, ...]]:
        """Finished heats beyond the prefix of `decided` heats."""
        beyond = range(decided, spec.schedule.num_heats)
        if not beyond:  # a late completion, of a job that has ended without any more to ask for
            return {}
        records = await self.queue.redis.hmget(self.queue.keys("heats", spec.id), beyond)
        return {
            heat: unpack_heat(spec, heat, record).candidates
            for heat, record in zip(beyond, records, strict=True)
            if record is not None
        }

    async def _leaders(self, spec: JobSpec) -> list[Candidate]:
        """Candidates in play, best first."""
        text = await self.queue.redis.hget(self.queue.keys("job", spec.id), "leaders")
        return unpack_leaders(spec, text or b"[]")

    async def _give_back(self, entry: Entry, deliveries: int, outcome: str, reason: str = "") -> None:
        await self.queue.scripts(
            "give_back", **self._entry(entry), deliveries=deliveries, outcome=outcome, reason=reason
        )

    def _entry(self, entry: Entry) -> dict[str, Argument]:
        """The arguments that name an entry of the ready stream, and this worker."""
        return {
            "pair": self.pair,
            "worker": self.worker,
            "priority": entry.priority,
            "entry": entry.id,
            "count": entry.count,
            "job": entry.job,
            "heat": entry.heat,
        }
