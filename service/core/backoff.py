"""Delays before a request is repeated: exponential backoff with jitter, and the delay that a server asks for."""

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 8.0
LONGEST_ASKED_SECONDS = 30.0  # a server that asks for more is too busy for a caller who waits

# Not the module's generator: programs with one seed would wait alike, and a call would change their own numbers.
_CHANCE = random.SystemRandom()


def backoff(attempt: int) -> float:
    """Seconds before the next attempt, doubling; a quarter is chance, so that callers do not come all at once."""
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0**attempt) * _CHANCE.uniform(0.75, 1.0)


def asked_delay(headers: Mapping[str, str]) -> float | None:
    """The seconds of `retry-after-ms` or Retry-After, which may also be a date; None if there is neither."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            return max(0.0, float(said) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except ValueError:
            continue
    return None
