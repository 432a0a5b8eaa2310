"""The engine's thread while there is nothing to do."""

import asyncio

from bestofn.service.engine.fake import FakeEngine
from bestofn.service.worker.engine_thread import EngineThread
from tests.waiting import PATIENCE


async def test_an_idle_device_that_is_lost_is_noticed() -> None:
    engine = FakeEngine()
    driver = EngineThread(lambda: engine, lambda events: None, probe_seconds=0.02)
    await driver.load()
    await asyncio.sleep(0.1)
    assert not driver.died.is_set()
    engine.lost.set()
    await asyncio.wait_for(driver.died.wait(), PATIENCE)
    assert str(driver.error) == "the device is lost"
    await driver.stop()
