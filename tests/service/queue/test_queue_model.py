"""The queue against a small model of it: whatever order things happen in, each heat counts once and turns are kept."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bestofn.judge.verdict import Verdict
from bestofn.service.core.errors import InvalidRequest, Overloaded
from bestofn.service.core.jobs import ACTIVE, Heat, HeatOutcome, JobSpec, JobStatus, Priority, Stop
from bestofn.service.core.results import assemble
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine, fake_verdict
from bestofn.service.engine.protocol import HeatFinished
from bestofn.service.queue.claims import Claim
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import GROUP, PRIORITIES

MOST, MOST_OF_ONE = 40, 16  # candidates that may wait, of all and of one caller
MOST_GFLOP = 30_000
WORKERS = ("one", "two", "three")

Entry = tuple[str, str]  # class, place in its stream
MakeSpec = Callable[..., JobSpec]
OpenLane = Callable[..., Awaitable[QueueConsumer]]


@dataclass
class Job:
    """What the model knows of a job."""

    spec: JobSpec
    caller: str
    status: JobStatus = JobStatus.QUEUED
    dealt: int = 0  # heats that have left the ring
    done: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)  # heats that cannot be done, of a job that may end before them
    gflop: int = 0  # that wait, as in the queue: each heat that is done takes its part

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def heats(self) -> list[Heat]:
        return list(self.spec.heats())

    @property
    def decided(self) -> int:
        return next(heat for heat in range(len(self.heats) + 1) if heat not in self.done)

    @property
    def has_turns(self) -> bool:
        """Whether it has heats that may be dealt: one that may stop waits for its first ones."""
        if self.dealt == len(self.heats):
            return False
        prefix = self.spec.schedule.first(self.decided)
        ahead = self.spec.schedule.first(self.dealt + 1) - prefix
        return self.spec.stop is None or self.dealt == self.decided or ahead <= max(4, prefix)

    def file(self, heat: int) -> bool:
        """A heat is done; whether the job has got turns by it."""
        had = self.has_turns
        if self.active:
            self.gflop -= self.gflop * self.heats[heat].count // self.waiting
        self.done.add(heat)
        end = self._end
        if end is not None and end <= self.decided:
            self.done = set(range(end))
        elif self.decided in self.dead:
            self.status = JobStatus.FAILED
        elif len(self.done) < len(self.heats):
            return self.has_turns and not had
        if self.active:
            self.status = JobStatus.SUCCEEDED
        return False

    @cached_property
    def _end(self) -> int | None:
        """After how many heats it stops."""
        if self.spec.stop is not None:
            for heat in self.heats:
                seen = range(self.spec.schedule.first(heat.index + 1))
                margin = max(fake_verdict(self.spec.prompt, self.spec.seed + i).margin for i in seen)
                if (len(seen) >= 4 and margin > 9) or (len(seen) >= self.spec.stop.patience and margin < 0):
                    return heat.index + 1
        return None

    @property
    def waiting(self) -> int:
        return sum(heat.count for heat in self.heats if heat.index not in self.done) if self.active else 0


@dataclass
class Ring:
    """Turns of one priority: callers with heats to deal, each with its jobs and the start of its next turn."""

    jobs: dict[str, list[str]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)  # of the last turns
    now: int = 0

    def enter(self, caller: str, job: str) -> None:
        if caller not in self.jobs:
            self.jobs[caller] = []
            self.starts[caller] = max(self.now, self.ends.get(caller, 0))
        self.jobs[caller].append(job)

    def take_turn(self, jobs: dict[str, Job]) -> None:
        """The caller whose turn is first gives a heat of its next job, and has its next turn that many later."""
        caller = min(self.starts, key=lambda name: (self.starts[name], name))
        job = jobs[self.jobs[caller].pop(0)]
        self.now = self.starts[caller]
        self.starts[caller] = self.ends[caller] = self.now + job.heats[job.dealt].count
        job.dealt += 1
        if job.has_turns:
            self.jobs[caller].append(job.spec.id)
        self.drop_idle()

    def drop_idle(self) -> None:
        for caller in [caller for caller, jobs in self.jobs.items() if not jobs]:
            del self.jobs[caller], self.starts[caller]
        if not self.jobs:
            self.ends, self.now = {}, 0


def outcome_of(heat: Heat) -> HeatOutcome:
    """What the fake engine makes of a heat, at once."""
    engine = FakeEngine(slots=16)
    engine.admit(heat)
    while True:
        for event in engine.tick():
            if isinstance(event, HeatFinished):
                return event.outcome


def entry_of(claim: Claim) -> Entry:
    return claim.entry.priority, claim.entry.id


class Machine(RuleBasedStateMachine):
    """Workers and callers do as they please, one at a time; leases end whenever somebody says so."""

    def __init__(self, runner: asyncio.Runner, settings: Settings, make_spec: MakeSpec, open_lane: OpenLane) -> None:
        super().__init__()
        self.run: Callable[[Any], Any] = runner.run
        self.make_spec, self.open_lane = make_spec, open_lane
        own = {
            "namespace": f"test-model-{uuid.uuid4().hex[:8]}",
            "max_queued_candidates": MOST,
            "max_queued_candidates_per_key": MOST_OF_ONE,
            "max_queued_tflops": MOST_GFLOP / 1000,
        }
        self.queue: Queue = self.run(Queue.connect(settings.model_copy(update=own)))
        self.jobs: dict[str, Job] = {}
        self.rings: dict[Priority, Ring] = {priority: Ring() for priority in PRIORITIES}
        self.owners: dict[Entry, str] = {}  # entry -> worker, of claims that count
        self.spent: dict[Entry, int] = {}  # entry -> deliveries so far
        self.claimed: dict[Entry, tuple[str, int]] = {}  # entry -> job, heat, of all that were ever claimed
        self.held: dict[str, list[Claim]] = {}  # of each worker, those it has lost too
        self.lanes: dict[str, QueueConsumer] = {}
        self.pair = ""
        for name in WORKERS[:2]:
            self.join(name)

    def join(self, name: str) -> None:
        self.lanes[name] = self.run(self.open_lane(self.queue, name))
        self.pair = self.lanes[name].pair
        self.held[name] = []

    @rule(
        heats=st.integers(1, 4),
        size=st.integers(1, 4),
        missing=st.integers(0, 3),
        priority=st.sampled_from(PRIORITIES),
        caller=st.sampled_from(["", "a", "b"]),
        seed=st.one_of(st.none(), st.integers(0, 99)),
        cost=st.sampled_from([0, 1, 5, 12]),
    )
    def submit(
        self, heats: int, size: int, missing: int, priority: Priority, caller: str, seed: int | None, cost: int
    ) -> None:
        samples = max(1, heats * size - min(missing, size - 1))
        spec = self.make_spec(num_samples=samples, heat_size=size, priority=priority)
        if seed is not None:  # one that may stop; sigmoid(9) is a little more than 0.9998
            stop = Stop(confidence=Verdict("yes", 9.0, 0.0).p_yes, patience=8)
            spec = spec.model_copy(update={"seed": seed, "num_samples": 3 * samples, "stop": stop})
            samples = spec.num_samples
        active = [job for job in self.jobs.values() if job.active]
        everyone = sum(job.waiting for job in active)
        own = sum(job.waiting for job in active if job.caller == caller) if caller else 0
        most = min(MOST_OF_ONE, int(0.75 * (MOST - everyone + own)))
        work = sum(job.gflop for job in active)
        own_work = sum(job.gflop for job in active if job.caller == caller)
        too_much = work + 1000 * cost > MOST_GFLOP or everyone + samples > MOST
        too_much_of_one = own + samples > most or own_work + 1000 * cost > int(0.75 * (MOST_GFLOP - work + own_work))
        if too_much or (caller and too_much_of_one):
            most_of_one, work_of_one = min(MOST_OF_ONE, int(0.75 * MOST)), 0.75 * MOST_GFLOP
            alone = samples > MOST or 1000 * cost > MOST_GFLOP
            alone_of_one = samples > most_of_one or 1000 * cost > work_of_one
            with pytest.raises(InvalidRequest if alone or (caller and alone_of_one) else Overloaded):
                self.run(self.queue.submit(spec, cost=cost, caller=caller))
            return
        assert self.run(self.queue.submit(spec, cost=cost, caller=caller)) == (spec.id, True)
        self.jobs[spec.id] = Job(spec, caller, gflop=1000 * cost)
        self.rings[priority].enter(caller, spec.id)

    @rule(name=st.sampled_from(WORKERS), count=st.integers(1, 3))
    def claim(self, name: str, count: int) -> None:
        if name in self.lanes:
            self._take(name, self.run(self.lanes[name].claim(count, 0)), again=False)

    @rule(name=st.sampled_from(WORKERS))
    def leases_end(self, name: str) -> None:
        if name in self.lanes:
            self._take(name, self.run(self.lanes[name].reclaim(0)), again=True)

    def _take(self, name: str, claims: list[Claim], again: bool) -> None:
        for claim in claims:
            entry, job = entry_of(claim), self.jobs[claim.entry.job]
            assert job.active
            assert claim.entry.heat not in job.done
            assert claim.heat.count == claim.entry.count
            assert (entry in self.owners) == again
            self.owners[entry], self.claimed[entry] = name, claim.key
            self.spent[entry] = self.spent.get(entry, 0) + 1
            assert claim.deliveries == self.spent[entry]
            job.status = JobStatus.RUNNING
            self.held[name] = [held for held in self.held[name] if entry_of(held) != entry] + [claim]

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        name, claim = self._one(data)
        job = self.jobs[claim.entry.job]
        first = job.active and claim.entry.heat not in job.done
        assert self.run(self.lanes[name].complete(claim, outcome_of(claim.heat))) == first
        self.owners.pop(entry_of(claim), None)
        if first and job.file(claim.entry.heat):
            self.rings[job.spec.priority].enter(job.caller, job.spec.id)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), delivery_action=st.sampled_from(["released", "retried", "dead_lettered"]))
    def fail(self, data: st.DataObject, delivery_action: str) -> None:
        name, claim = self._one(data)
        before = self._entries()
        self.run(self.lanes[name].give_back(claim, delivery_action, "it would not"))
        if self.owners.get(entry_of(claim)) != name:
            return
        del self.owners[entry_of(claim)]
        job = self.jobs[claim.entry.job]
        if not job.active or claim.entry.heat in job.done:
            return
        if delivery_action == "dead_lettered":
            job.dead.add(claim.entry.heat)
            if job.spec.stop is None or job.decided in job.dead:
                job.status = JobStatus.FAILED
        else:
            mine = (claim.entry.job, claim.entry.heat)
            [added] = [entry for entry, what in self._entries().items() if entry not in before and what == mine]
            self.spent[added] = claim.deliveries - (delivery_action == "released")

    def _one(self, data: st.DataObject) -> tuple[str, Claim]:
        name = data.draw(st.sampled_from([name for name, held in self.held.items() if held]))
        claim = data.draw(st.sampled_from(self.held[name]))
        self.held[name].remove(claim)
        return name, claim

    @precondition(lambda self: bool(self.jobs))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(list(self.jobs)))]
        if job.active:
            job.status = JobStatus.CANCELED
        assert self.run(self.queue.cancel(job.spec.id)) is job.status

    @precondition(lambda self: any(job.active for job in self.jobs.values()))
    @rule(data=st.data())
    def deadline(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs.values() if job.active]))
        self.run(self.queue.redis.zadd(self.queue.keys("deadlines"), {job.spec.id: 0}))
        self.run(self.queue.scripts("expire"))
        job.status = JobStatus.SUCCEEDED if job.done else JobStatus.FAILED

    @rule(name=st.sampled_from(WORKERS))
    def heartbeat(self, name: str) -> None:
        if name not in self.lanes:
            self.join(name)
            return
        lost = self.run(self.lanes[name].heartbeat(self.held[name], 3600.0))
        wanted = [claim for claim in self.held[name] if self._wanted(entry_of(claim))]
        taken = {claim.entry.id for claim in wanted if self.owners.get(entry_of(claim)) != name}
        assert taken <= lost

    @precondition(lambda self: len(self.lanes) > 1)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.lanes)))
        self.run(self.lanes.pop(name).heartbeat((), 0.0))  # its announcement lapses; its heats stay where they are
        del self.held[name]

    @invariant()
    def turns_are_kept(self) -> None:
        """Heats have been dealt as if callers had taken turns, and the jobs of a caller, whatever else has happened."""
        for priority, ring in self.rings.items():
            for caller, jobs in ring.jobs.items():
                ring.jobs[caller] = [job for job in jobs if self.jobs[job].active]
            ring.drop_idle()
            now = {job: int(self._field(job, "next")) for jobs in ring.jobs.values() for job in jobs}
            for _ in range(sum(now[job] - self.jobs[job].dealt for job in now)):
                ring.take_turn(self.jobs)
            assert {job: self.jobs[job].dealt for job in now} == now
            assert self._turns(priority) == (ring.starts, ring.jobs)

    def _turns(self, priority: Priority) -> tuple[dict[str, int], dict[str, list[str]]]:
        """The stored ring: the start of each caller's next turn, and its jobs."""
        redis, keys = self.queue.redis, self.queue.keys
        ring = self.run(redis.zrange(keys("ring", self.pair, priority), 0, -1, withscores=True))
        starts = {caller.decode(): int(start) for caller, start in ring}
        lists = {
            name: self.run(redis.lrange(keys("jobs", self.pair, priority, name), 0, -1)) for name in ("", "a", "b")
        }
        return starts, {name: [job.decode() for job in jobs] for name, jobs in lists.items() if jobs}

    @invariant()
    def books_balance(self) -> None:
        active = [job for job in self.jobs.values() if job.active]
        backlog = self.run(self.queue.backlog())
        assert (backlog.jobs, backlog.candidates) == (len(active), sum(job.waiting for job in active))
        callers = self.run(self.queue.redis.hgetall(self.queue.keys("callers")))
        owed = {name: sum(job.waiting for job in active if job.caller == name) for name in ("a", "b")}
        assert {name.decode(): int(count) for name, count in callers.items()} == {k: v for k, v in owed.items() if v}
        held: Counter[str] = Counter()
        for text in self.run(self.queue.redis.hvals(self.queue.keys("holdings"))):
            images, kept, name = text.decode().split(" ")
            held.update(
                {"kept": int(kept), **({f"images:{name}": int(images), f"kept:{name}": int(kept)} if name else {})}
            )
        for job in active:
            if job.caller:
                held[f"gflop:{job.caller}"] += job.gflop
        stored = self.run(self.queue.redis.hgetall(self.queue.keys("held")))
        assert {name.decode(): int(bytes_) for name, bytes_ in stored.items()} == {k: v for k, v in held.items() if v}
        entries = self._entries()
        for job in self.jobs.values():
            name = job.spec.id
            assert self._field(name, "status").decode() == job.status
            filed = self.run(self.queue.redis.hkeys(self.queue.keys("heats", name)))
            assert {int(heat) for heat in filed} == (set() if job.status is JobStatus.CANCELED else job.done)
            if job.active:
                there = [heat for owner, heat in entries.values() if owner == name and heat not in job.done]
                out = job.done | job.dead
                assert sorted(there) == [heat for heat in range(int(self._field(name, "next"))) if heat not in out]

    @invariant()
    def what_is_dealt_is_counted(self) -> None:
        pending: dict[Entry, str] = {}
        for priority in PRIORITIES:
            ready = self.queue.keys("ready", self.pair, priority)
            rows = self.run(self.queue.redis.xpending_range(ready, GROUP, "-", "+", 100))
            pending |= {(priority, row["message_id"].decode()): row["consumer"].decode() for row in rows}
            entries = self.run(self.queue.redis.xrange(ready))
            dealt = int(self.run(self.queue.redis.get(self.queue.keys("dispatched", self.pair, priority))) or 0)
            assert dealt == sum(int(fields[b"count"]) for _, fields in entries)
        wanted = {entry: owner for entry, owner in self.owners.items() if self._wanted(entry)}
        assert {entry: owner for entry, owner in pending.items() if self._wanted(entry)} == wanted

    def _wanted(self, entry: Entry) -> bool:
        """Whether a claimed entry is of a heat that its job still waits for; any other goes when it is looked at."""
        job, heat = self.claimed[entry]
        return self.jobs[job].active and heat not in self.jobs[job].done

    def _entries(self) -> dict[Entry, tuple[str, int]]:
        """Everything in the ready streams, as (job, heat)."""
        found: dict[Entry, tuple[str, int]] = {}
        for priority in PRIORITIES:
            for entry, fields in self.run(self.queue.redis.xrange(self.queue.keys("ready", self.pair, priority))):
                found[priority, entry.decode()] = fields[b"job"].decode(), int(fields[b"heat"])
        return found

    def _field(self, job: str, name: str) -> bytes:
        value = self.run(self.queue.redis.hget(self.queue.keys("job", job), name))
        assert isinstance(value, bytes)
        return value

    def teardown(self) -> None:
        """One worker that stays does all that is left; then every job has its end and nothing is owed."""
        last = self.run(self.open_lane(self.queue, "last", 64))
        for _ in range(1000):  # some find only heats of jobs that have ended
            for claim in self.run(last.reclaim(0)) or self.run(last.claim(8, 0)):
                self.run(last.complete(claim, outcome_of(claim.heat)))
                job = self.jobs[claim.entry.job]
                job.file(claim.entry.heat)
            if not self._entries():
                break
        for job in self.jobs.values():
            record = self.run(self.queue.record(job.spec.id))
            assert record.status is job.status
            assert not job.active
            result = assemble(record.spec, record.status, record.outcomes)
            if job.status is JobStatus.SUCCEEDED and record.stopped != "deadline":
                assert sorted(c.index for c in result.candidates) == list(range(job.spec.schedule.first(len(job.done))))
        backlog = self.run(self.queue.backlog())
        assert (backlog.jobs, backlog.candidates, backlog.tflops) == (0, 0, 0)
        assert self._entries() == {}
        self.run(self.queue.aclose())


def test_the_queue_is_what_its_model_says(settings: Settings, make_spec: MakeSpec, open_lane: OpenLane) -> None:
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            lambda: Machine(runner, settings, make_spec, open_lane),
            settings=bounds(
                max_examples=12,
                stateful_step_count=40,
                deadline=None,
                phases=[Phase.generate],  # to shorten a failure would take longer than to read it
                suppress_health_check=list(HealthCheck),
            ),
        )
