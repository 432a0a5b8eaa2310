"""The answer does not depend on the order in which heats finish, and agrees with the verdict's own order."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.verdict import Rule, Verdict, rank
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, JobStatus, Revision, Usage
from bestofn.service.core.results import assemble, leaders
from bestofn.service.core.schemas import CandidateOut, MatchOut

PIN = Revision(name="fake", revision="0")


def spec(num_samples: int, heat_size: int, top_k: int, rule: Rule = Rule.MARGIN) -> JobSpec:
    return JobSpec(
        id="j", prompt="a ring", num_samples=num_samples, top_k=top_k, seed=7, width=64, height=64, rule=rule,
        num_inference_steps=4, guidance_scale=4.0, heat_size=heat_size, model=PIN, judge=PIN,
    )  # fmt: skip


def outcomes(job: JobSpec, verdicts: list[Verdict]) -> list[HeatOutcome]:
    candidates = [Candidate(i, job.seed + i, verdict) for i, verdict in enumerate(verdicts)]
    return [
        HeatOutcome(
            heat.index,
            tuple(candidates[i] for i in heat.candidates),
            {},
            Usage(candidates=heat.count, tflops=0.5, seconds={"judge": 1.0}),
            warnings=("unknown word: glorp",),
        )
        for heat in job.heats()
    ]


VERDICTS = st.builds(
    Verdict, st.sampled_from(["yes", "no", "other"]), *[st.sampled_from([-1.0, 0.0, 0.5, float("nan")])] * 2
)


@given(st.lists(VERDICTS, min_size=1, max_size=20), st.integers(1, 5), st.sampled_from(Rule), st.randoms())
def test_any_order_of_heats_gives_the_same_answer(verdicts, heat_size, rule, random):
    job = spec(len(verdicts), heat_size, min(3, len(verdicts)), rule)
    finished = outcomes(job, verdicts)
    straight = assemble(job, JobStatus.SUCCEEDED, finished)
    shuffled = random.sample(finished, len(finished))
    assert assemble(job, JobStatus.SUCCEEDED, shuffled) == straight
    order = rank(verdicts, rule)
    assert [image.candidate for image in straight.images] == order[: job.top_k]
    assert [order[candidate.rank - 1] for candidate in straight.candidates] == list(range(len(verdicts)))
    if straight.bracket:
        assert straight.bracket[-1][0].winner == order[0]
    assert straight.usage is not None
    assert straight.usage.candidates == len(verdicts)
    unusable = sum(verdict.answer == "other" or verdict.broken for verdict in verdicts)
    warnings = [f"the judge gave {unusable} of {len(verdicts)} candidates no usable verdict"] if unusable else []
    assert [text.partition(" (")[0] for text in straight.warnings] == ["unknown word: glorp", *warnings]


@given(st.lists(VERDICTS, min_size=2, max_size=20), st.integers(1, 6), st.integers(1, 4))
def test_the_leaders_of_the_leaders_are_the_leaders(verdicts, heat_size, top_k):
    job = spec(len(verdicts), heat_size, min(top_k, len(verdicts)))
    finished = outcomes(job, verdicts)
    everyone = [candidate for outcome in finished for candidate in outcome.candidates]
    kept = itertools.chain.from_iterable(leaders(job, outcome.candidates) for outcome in finished)
    assert leaders(job, [everyone[i] for i in kept]) == leaders(job, everyone)


def test_a_job_that_runs_shows_no_images():
    job = spec(4, 2, 1)
    running = assemble(job, JobStatus.RUNNING, outcomes(job, [Verdict("yes", 1, 0)] * 4)[:1])
    assert (running.images, running.bracket, running.complete) == ([], [], False)
    assert [candidate.index for candidate in running.candidates] == [0, 1]


def test_pages_of_a_job_put_together_are_the_job() -> None:
    job = spec(11, 4, 2)
    finished = outcomes(job, [Verdict("yes", (5 * i) % 11, 0.0) for i in range(11)])
    whole = assemble(job, JobStatus.SUCCEEDED, finished)
    assert assemble(job, JobStatus.SUCCEEDED, finished, limit=256) == whole
    candidates: list[CandidateOut] = []
    bracket: list[list[MatchOut]] = [[] for _ in whole.bracket]
    offset, following = 0, "first"
    while following:
        part = assemble(job, JobStatus.SUCCEEDED, finished, offset=offset, limit=4)
        assert (part.images, part.usage, part.warnings) == (whole.images, whole.usage, whole.warnings)
        candidates += part.candidates
        for matches, more in zip(bracket, part.bracket, strict=True):
            matches += more
        offset += 4
        following = part.next or ""
        assert not following or following == f"/jobs/j?offset={offset}&limit=4"
    assert (candidates, bracket, offset) == (whole.candidates, whole.bracket, 12)
