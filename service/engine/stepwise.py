"""A blocking call that is run step by step: a thread that works only while its caller waits for the next step."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")
Call = Callable[[Callable[[], None]], Result]


class Stopped(BaseException):
    """Ends a call that is not wanted any more; no handler of errors catches it."""


class Stepwise(Generic[Result]):
    """Runs one call after the other in a thread that never runs at the same time as its caller.

    A call is given a function that it calls after each step, which pauses it there until the next `advance`. The
    thread is a daemon: a paused call does not keep the process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._calls: SimpleQueue[Call[Result]] = SimpleQueue()
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = False
        self._running = False
        self._outcome: Result | BaseException | None = None
        threading.Thread(target=self._serve, name="draw", daemon=True).start()

    def start(self, call: Call[Result]) -> None:
        """Take a call; nothing of it runs yet."""
        self._running, self._outcome = True, None
        self._calls.put(call)

    def advance(self) -> Result | None:
        """Run to the end of the next step, or of the call: its result, or None while it is paused.

        Raises:
            BaseException: what the call raised.
        """
        self._go.release()
        self._paused.acquire()
        if self._running:
            return None
        outcome, self._outcome = self._outcome, None
        if not isinstance(outcome, BaseException):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # which would hold its own traceback, and with it the call's tensors

    def stop(self) -> None:
        """End a paused call; its memory is free on return."""
        if not self._running:
            return
        self._stopping = True
        try:
            while self._running:
                self.advance()
        except Stopped:
            pass
        finally:
            self._stopping = False

    def _serve(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while True:
            call = self._calls.get()
            self._go.acquire()
            try:
                if self._stopping:
                    raise Stopped
                self._outcome = call(self._step)
            except BaseException as error:
                self._outcome = error
            del call
            self._running = False
            self._paused.release()

    def _step(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._stopping:
            raise Stopped
