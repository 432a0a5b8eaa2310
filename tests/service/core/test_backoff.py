"""Delays before a request is repeated."""

import random

from bestofn.service.core.backoff import FIRST_SECONDS, LONGEST_SECONDS, backoff


def test_backoff_doubles_and_leaves_a_programs_own_random_numbers_alone() -> None:
    random.seed(1)
    state = random.getstate()
    delays = [backoff(attempt) for attempt in range(8)]
    assert random.getstate() == state
    random.seed(1)
    assert delays != [backoff(attempt) for attempt in range(8)], "programs with one seed do not come back together"
    for attempt, delay in enumerate(delays):
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2**attempt)
        assert 0.75 * longest <= delay <= longest
