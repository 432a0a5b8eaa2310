"""Engine thread: admits heats, ticks while there is work, and passes events to the event loop."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from bestofn.service.core.jobs import Heat
from bestofn.service.engine.protocol import Engine, EngineEvent, Stepped
from bestofn.service.telemetry.metrics import BATCH_FILL, TICK_SECONDS

STALL_TICKS = 10.0  # a tick may take this many times as long as usual before the engine counts as stalled
PROBE_SECONDS = 5.0  # interval of the probes of an idle device
_JOIN_SECONDS = 5.0
_TICK_WEIGHT = 0.1  # weight of the last tick in the moving average


class EngineThread:
    """Runs one engine in its own thread. All methods belong to the event loop.

    `on_events` is called in the event loop with the events of each tick. `died` is set when the engine raises.
    """

    def __init__(
        self,
        factory: Callable[[], Engine],
        on_events: Callable[[Sequence[EngineEvent]], None],
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self.engine: Engine
        self.error: BaseException | None = None
        self.died = asyncio.Event()
        self.changed = asyncio.Event()  # set when there may be more room
        self._factory = factory
        self._on_events = on_events
        self._probe_seconds = probe_seconds
        self._loop = asyncio.get_running_loop()
        self._loaded = asyncio.Event()
        self._wake = threading.Condition()
        self._admitted: deque[Heat] = deque()
        self._stopping = False
        self._room = 0
        self._on_the_way = 0  # candidates admitted since the thread last published its room
        self._last = time.monotonic()
        self._usual_tick: float | None = None
        self._ticking = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def load(self) -> None:
        """Start the thread and make the engine; raises whatever the factory raises."""
        self._thread.start()
        await self._loaded.wait()
        if self.error is not None:
            raise self.error

    def room(self) -> int:
        """Number of candidates that the engine can admit now."""
        return self._room - self._on_the_way

    def admit(self, heat: Heat) -> None:
        """Admit a heat before the next tick."""
        self._on_the_way += heat.count
        with self._wake:
            self._admitted.append(heat)
            self._wake.notify()

    def cancel(self, job: str) -> None:
        """Drop all heats of a job before the next tick, also those not yet admitted."""
        with self._wake:
            dropped = [heat for heat in self._admitted if heat.job.id == job]
            for heat in dropped:
                self._admitted.remove(heat)
            self.engine.cancel(job)
            self._wake.notify()
        self._on_the_way -= sum(heat.count for heat in dropped)

    def stalled(self, stall_seconds: float, factor: float = 1.0) -> bool:
        """Whether a tick has gone on for longer than `factor` times `stall_seconds`, and than ten usual ones."""
        patience = factor * max(stall_seconds, STALL_TICKS * (self._usual_tick or 0.0))
        return self._ticking and time.monotonic() - self._last > patience

    def give_up(self) -> None:
        """Declare an engine dead whose tick does not return."""
        self.error = TimeoutError(f"a tick has not returned for {time.monotonic() - self._last:.0f} s")
        self.died.set()

    async def stop(self) -> bool:
        """End the thread after its current tick; False if that tick does not return."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.engine = self._factory()
            self._room = self.engine.room()
            self._post(self._loaded.set)
            while self._admit_waiting():
                self._tick()
        except BaseException as error:  # handed to the event loop, which ends the process
            self.error = error
            self._post(self._loaded.set)
            self._post(self.died.set)

    def _admit_waiting(self) -> bool:
        """Wait for work and probe the device while idle; False: the thread has to end."""
        while not self._wait(self._probe_seconds):
            self._last = time.monotonic()
            self._ticking = True  # a probe that hangs is a stall too
            self.engine.probe()
            self._ticking = False
        with self._wake:
            if self._stopping:
                return False
            if not self._ticking:
                self._last = time.monotonic()
                self._ticking = True
            heats = list(self._admitted)
            self._admitted.clear()
        for heat in heats:
            self.engine.admit(heat)
        self._publish((), sum(heat.count for heat in heats))
        return True

    def _wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for work; returns whether there is any."""
        with self._wake:
            return self._wake.wait_for(lambda: self._stopping or bool(self._admitted) or self.engine.busy, seconds)

    def _tick(self) -> None:
        if self.engine.busy:
            started = time.monotonic()
            events = self.engine.tick()
            self._last = time.monotonic()
            seconds = self._last - started
            TICK_SECONDS.observe(seconds)
            if advanced := sum(event.steps for event in events if isinstance(event, Stepped)):
                BATCH_FILL.observe(advanced / self.engine.slots)
            usual = self._usual_tick or seconds
            self._usual_tick = usual + _TICK_WEIGHT * (seconds - usual)
        else:
            events = []
        self._ticking = self.engine.busy
        self._publish(events, 0)

    def _publish(self, events: Sequence[EngineEvent], admitted: int) -> None:
        room = self.engine.room()
        self._post(lambda: self._on_tick(room, admitted, events))

    def _on_tick(self, room: int, admitted: int, events: Sequence[EngineEvent]) -> None:
        self._room = room
        self._on_the_way -= admitted
        self.changed.set()
        if events:
            self._on_events(events)

    def _post(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(call)
