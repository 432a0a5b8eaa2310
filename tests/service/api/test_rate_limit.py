"""The door: floods are refused without a look, patient callers never notice, and callers do not harm each other."""

import contextlib

import pytest

from bestofn.service.api.rate_limit import CALLERS_KEPT, TOKENS, TOKENS_PER_SECOND, RefusalLimiter
from bestofn.service.core.errors import Overloaded

FULL = Overloaded("no room", retry_after=3.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tokens(refusal_limiter: RefusalLimiter, caller: str, tries: int) -> int:
    """Number of refused attempts that checked the queue."""
    count = 0
    for _ in range(tries):
        with contextlib.suppress(Overloaded):
            refusal_limiter.enter(caller)
            count += 1
            refusal_limiter.refused(caller, FULL)
    return count


def test_a_flood_has_few_looks_and_others_have_all_of_theirs() -> None:
    clock = Clock()
    refusal_limiter = RefusalLimiter(clock)
    assert tokens(refusal_limiter, "flood", 1000) == TOKENS
    assert tokens(refusal_limiter, "flood", 1000) == 0
    assert tokens(refusal_limiter, "other", 1) == 1
    clock.now += 2.0
    assert tokens(refusal_limiter, "flood", 1000) == 2 * TOKENS_PER_SECOND


def test_rate_limit_caller_that_waits_as_asked_reaches_redis() -> None:
    clock = Clock()
    refusal_limiter = RefusalLimiter(clock)
    for _ in range(100):
        assert tokens(refusal_limiter, "patient", 5) == 5
        clock.now += 1.0


def test_rate_limit_accepted_call_takes_no_token() -> None:
    refusal_limiter = RefusalLimiter(Clock())
    tokens(refusal_limiter, "busy", int(TOKENS) - 1)
    for _ in range(100):
        refusal_limiter.enter("busy")
        refusal_limiter.accepted("busy")
    refusal_limiter.enter("busy")
    with pytest.raises(Overloaded, match="no room") as refusal:
        refusal_limiter.enter("busy")
    assert refusal.value is FULL


def test_callers_are_forgotten_when_they_have_calmed_down_or_are_too_many() -> None:
    clock = Clock()
    refusal_limiter = RefusalLimiter(clock)
    tokens(refusal_limiter, "calm", 3)
    clock.now += TOKENS / TOKENS_PER_SECOND
    refusal_limiter.enter("calm")
    assert tokens(refusal_limiter, "calm", 1000) == TOKENS
    for number in range(CALLERS_KEPT):
        refusal_limiter.refused(f"caller {number}", FULL)
    assert tokens(refusal_limiter, "calm", 1) == 1
