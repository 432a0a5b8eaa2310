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
    """The seconds of `retry-after-ms` or Retry-After; None if there is neither.

    Retry-After may be a date, which is compared with the answer's own: the server's clock may differ from this one.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            return max(0.0, float(said) * unit)
        except ValueError:
            pass
        moment = _moment(said)
        if moment is not None:
            return max(0.0, moment - (_moment(headers.get("date", "")) or time.time()))
    return None


def _moment(date: str) -> float | None:
    """Seconds since 1970 of an HTTP date; None if it cannot be read."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
