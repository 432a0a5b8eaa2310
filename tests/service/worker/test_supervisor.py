"""Workers that end are started again, ever more slowly, until the supervisor is told to stop or none can be kept."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from bestofn.service.worker.supervisor import LOST_AFTER, all_lost, pause_after, supervise
from tests.waiting import PATIENCE, until


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_after(failures) for failures in (0, 1, 2, 3, 7, 50)] == [0.0, 1.0, 2.0, 4.0, 60.0, 60.0]


def test_a_worker_that_ends_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    short = [sys.executable, "-c", f"open({str(starts)!r}, 'a').write('x')"]
    steady = ["sleep", str(2 * PATIENCE)]

    def stop() -> None:
        with contextlib.suppress(AssertionError):
            until(lambda: starts.is_file() and len(starts.read_text()) >= 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert supervise([short, steady]) == 0
    thread.join()
    assert len(starts.read_text()) >= 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_bad_device_is_no_reason_to_end_but_all_of_them_are() -> None:
    assert not all_lost([11, 0], 6)
    assert not all_lost([6, 5], 6)
    assert all_lost([6, 11], 6)
    assert not all_lost([6, 11], 7)


def test_the_supervisor_ends_with_a_failure_when_no_worker_can_be_kept() -> None:
    assert supervise([[sys.executable, "-c", "raise SystemExit(1)"]] * 2, first_pause=0.01) == 1


@pytest.mark.parametrize("ready", [True, False])
def test_only_a_worker_that_was_ready_counts_as_healthy(ready: bool, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    said = "announce_ready()" if ready else ""
    program = (
        f"from bestofn.service.worker.supervisor import announce_ready; open({str(starts)!r}, 'a').write('x'); {said}"
    )

    def stop() -> None:
        with contextlib.suppress(AssertionError):
            until(lambda: not ready or (starts.is_file() and len(starts.read_text()) > LOST_AFTER + 1))
        if ready:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    status = supervise([[sys.executable, "-P", "-c", program]], first_pause=0.01, healthy_seconds=0.0)
    thread.join()
    assert status == (0 if ready else 1)
