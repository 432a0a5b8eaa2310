"""Claims: heats that a worker holds, and what it reports about them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from bestofn.service.core.jobs import Candidate, Heat, Priority


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the ready stream: one heat to run."""

    id: str
    priority: Priority
    job: str
    heat: int
    count: int

    @classmethod
    def read(cls, priority: Priority, entry: bytes, fields: Mapping[bytes, bytes]) -> "Entry":
        """The entry with these fields. Those that cannot be read become job "", heat -1 or count 0."""
        job = fields.get(b"job", b"").decode(errors="replace")
        return cls(entry.decode(), priority, job, number(fields, b"heat", -1), number(fields, b"count", 0))


def number(fields: Mapping[bytes, bytes], name: bytes, default: int) -> int:
    """A field of an entry; `default` if it is no number or left out."""
    text = fields.get(name, b"")
    return int(text) if text.isdigit() else default


@dataclass(frozen=True, slots=True)
class Claim:
    """A heat that this worker holds.

    Attributes:
        deliveries: number of deliveries, this one included.
        traceparent: trace context of the submitting request; "" if it was not traced.
        waited_seconds: seconds from the job's submission to this claim.
        claimed: time of the claim on this process' monotonic clock.
    """

    entry: Entry
    heat: Heat
    deliveries: int
    traceparent: str = ""
    waited_seconds: float = 0.0
    claimed: float = field(default_factory=time.monotonic, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        return self.entry.job, self.entry.heat


@dataclass(slots=True)
class HeatProgress:
    """Progress of a heat since its last start: candidates judged, steps and transformer forwards done."""

    heat: int
    judged: int = 0
    steps: int = 0
    forwards: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judged candidate, with its thumbnail in jobs with thumbnails."""

    candidate: Candidate
    thumbnail: bytes | None = None
