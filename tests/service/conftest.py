"""Queue servers for tests: each session starts its own, and each test has its own namespace on it."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bestofn.service.redis_server import LocalServer, embedded_binary
from bestofn.service.settings import Settings


@pytest.fixture(scope="session", params=["redis", "valkey"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server of its own: a Redis from PATH, and the embedded Valkey."""
    found = shutil.which("redis-server") if request.param == "redis" else embedded_binary()
    if found is None:
        pytest.skip(f"no {request.param} server here")
    folder = Path(tempfile.mkdtemp(prefix="bestofn-test-"))
    try:
        with LocalServer(folder, Path(found)) as server:
            yield server.url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Short times, and keys that no other test has."""
    return Settings(
        redis_url=redis_url,
        namespace=f"test-{uuid.uuid4().hex[:8]}",
        data_dir=tmp_path,
        lease_seconds=1.0,
        beat_seconds=0.2,
        stall_seconds=2.0,
    )
