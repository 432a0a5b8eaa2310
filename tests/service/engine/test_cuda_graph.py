"""Recorded work without a GPU: it runs all the same, and that it is not recorded is logged and counted."""

import pytest
import torch
from structlog.testing import capture_logs

from bestofn.service.engine.cuda_graph import Recorded
from bestofn.service.telemetry.metrics import WORKER_REGISTRY


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a graph can be recorded")
def test_a_failed_recording_is_logged_and_counted_once() -> None:
    calls: list[int] = []
    work = Recorded(lambda: calls.append(1), torch.device("cuda"))
    before = WORKER_REGISTRY.get_sample_value("bestofn_unrecorded_forwards_total")
    with capture_logs() as logs:
        for _ in range(3):
            work()
    assert len(calls) == 3
    assert [entry["event"] for entry in logs] == ["a forward runs without a CUDA graph, slower"]
    assert WORKER_REGISTRY.get_sample_value("bestofn_unrecorded_forwards_total") == (before or 0.0) + 1
