"""Liveness of a worker's event loop: a loop that sleeps or spins for too long fails the liveness probe."""

import asyncio
import time

BEAT_SECONDS = 1.0
SPINNING = 0.95  # share of a core that the loop's thread takes while it spins; a working loop takes a few percent


class LoopMonitor:
    """Beats in the event loop; asked from the health server's thread."""

    def __init__(self) -> None:
        self._beat = self._calm = time.monotonic()

    async def run(self) -> None:
        """Beat every second, and note when the loop's thread was last not spinning."""
        before, cpu_before = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now, cpu = time.monotonic(), time.thread_time()
            self._beat = now
            if cpu - cpu_before < SPINNING * (now - before):
                self._calm = now
            before, cpu_before = now, cpu

    def stalled(self, stall_seconds: float) -> bool:
        """Whether the loop has slept or spun for `stall_seconds`."""
        return time.monotonic() - min(self._beat, self._calm) > stall_seconds
