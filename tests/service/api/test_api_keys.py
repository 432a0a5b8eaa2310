"""API keys: their file and its command, who is let in while it changes, and the walls between callers."""

import logging
import re
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bestofn.service.api import key_file as keyfile
from bestofn.service.api.app import create_app
from bestofn.service.api.key_file import Key, sha256
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
BODY = {"prompt": "a red star", "num_samples": 4, "thumbnails": True}
ASYNC = {"Prefer": "respond-async"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def becomes(look: Callable[[], object], wanted: object) -> None:
    until(lambda: look() == wanted)


def test_keys_are_made_rotated_and_revoked_by_name(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "data" / "keys"

    def command(*arguments: str) -> tuple[int, str, str]:
        return run("keys", *arguments, BESTOFN_DATA_DIR=str(file.parent))

    _, out, err = command("add", "ali")
    key = out.strip()
    assert re.fullmatch(r"bo_[\w-]{43}", key)
    assert "from now on" in err
    assert file.stat().st_mode & 0o777 == 0o600
    assert (key not in file.read_text(), sha256(key) in file.read_text()) == (True, True)
    file.write_text(f"# ours\n{file.read_text()}")
    file.chmod(0o640)
    for arguments, said in {
        ("add", "ali"): "--rotate",
        ("add", "bea", "--rotate"): "leave --rotate out",
        ("add", "b a"): "1 to 64 letters",
        ("revoke", "bea"): "bea has no key",
        ("revoke", "ali", "--old"): "no older key",
    }.items():
        status, out, err = command(*arguments)
        assert (status, out) == (1, "")
        assert said in err
    second = command("add", "ali", "--rotate")[1].strip()
    assert [known.sha256 for known in keyfile.parse(file.read_text(), file)] == [sha256(key), sha256(second)]
    assert command("revoke", "ali", "--old")[0] == 0
    assert [line.split()[::2] for line in command("list")[1].splitlines()] == [["ali", sha256(second)[:12]]]
    assert command("revoke", "ali")[0] == 0
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("# ours\n", 0o640)
    _, out, err = command("add", "ali", "--file", "-")
    (line,) = keyfile.parse(out, file)
    assert (line.name, line.sha256) == ("ali", sha256(err.split()[-1]))
    assert file.read_text() == "# ours\n"


HASH = "0" * 64
BROKEN = {
    "a key in place of its hash": "ali bo_secret",
    "no hash": "ali",
    "a hash in capitals": f"ali {'A' * 64}",
    "no day": f"ali {HASH} yesterday",
    "too much": f"ali {HASH} 2026-01-01 more",
    "no name": f"-ali {HASH}",
    "the same key twice": f"ali {HASH}\nbea {HASH}",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_by_its_line_and_never_written(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# as it was\n")
    last = 1 + len(text.splitlines())
    with pytest.raises(SetupError, match=rf"{file}, line {last}") as error, keyfile.change(file) as lines:
        lines += text.splitlines()
    assert "secret" not in error.value.detail
    assert [path.read_text() for path in tmp_path.iterdir()] == ["# as it was\n"]
    file.write_text(text)
    with pytest.raises(SetupError, match="bestofn keys add"):
        create_app(Settings(keys_file=file))


def test_keys_in_a_place_that_cannot_be_used_name_the_settings(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    status, out, err = run("keys", "add", "ali", BESTOFN_DATA_DIR=str(tmp_path / "file"))
    assert (status, out) == (1, "")
    assert "cannot be written (File exists): name another file with --file or BESTOFN_KEYS_FILE" in err, err
    for command in (["list"], ["add", "ali"], ["revoke", "ali"]):
        assert "cannot be read: Is a directory" in run("keys", *command, BESTOFN_KEYS_FILE=str(tmp_path))[2]


def test_key_that_the_disk_has_no_room_for_leaves_the_file_as_it_was(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    assert run("keys", "add", "ali")[0] == 0
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))  # as a full disk, with an error of its own
    try:
        status, out, err = run("keys", "add", "bo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, out) == (1, "")
    assert f"{file} cannot be written (File too large): name another file with --file" in err
    assert (file.read_bytes(), [path.name for path in tmp_path.iterdir()]) == (before, ["keys"])


def test_one_change_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with keyfile.change(file), pytest.raises(SetupError, match="is being changed"), keyfile.change(file):
        pass
    with keyfile.change(file):
        pass


def test_other_machines_need_keys_or_a_word_of_consent(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0", redis_url="redis://localhost:1", data_dir=tmp_path)
    with pytest.raises(SetupError, match=r"bestofn keys add NAME.*/keys"):
        create_app(settings)
    create_app(settings.model_copy(update={"allow_unauthenticated": True}))
    with pytest.raises(SetupError, match="is not there"):  # named, so it was meant
        create_app(Settings(redis_url="redis://localhost:1", keys_file=tmp_path / "keys"))


def test_keys_open_the_door_and_nothing_else_does(served: Any, serving: Serving, keys: Any) -> None:
    with serving(served.settings.model_copy(update={"host": "0.0.0.0", **keys("k1", "k2")})) as api:

        def status(**headers: str | bytes) -> int:
            sent = [
                (name.encode(), value if isinstance(value, bytes) else value.encode())
                for name, value in headers.items()
            ]
            return httpx.get(f"{api.url}/jobs/0123", headers=sent, timeout=PATIENCE).status_code

        refused = httpx.get(f"{api.url}/jobs/0123", timeout=PATIENCE)
        assert (refused.json()["code"], refused.headers["www-authenticate"]) == ("not_authorized", "Bearer")
        assert status(Authorization="Bearer k3") == 401
        assert status(Authorization=f"Bearer {sha256('k1')}") == 401
        assert status(Authorization="Basic k1") == 401
        assert status(Authorization=b"Bearer k\xfc1") == 401
        assert status(Authorization="bearer k2", Host="any.example") == 404
        assert httpx.get(f"{api.url}/readyz", timeout=PATIENCE).is_success


def test_a_file_that_changes_counts_without_a_restart(served: Any, serving: Serving, tmp_path: Path) -> None:
    """Through a link that is swapped, as Kubernetes mounts secrets."""
    file, link = tmp_path / "keys", tmp_path / "current"
    lines = {name: f"{Key(name, sha256(name))}\n" for name in ("k1", "k2")}

    def swap(*names: str) -> None:
        number = len(list(tmp_path.iterdir()))
        (tmp_path / f"version-{number}").mkdir()
        (tmp_path / f"version-{number}" / "keys").write_text("".join(lines[name] for name in names))
        (tmp_path / "new").symlink_to(f"version-{number}")
        (tmp_path / "new").rename(link)

    swap("k1", "k2")
    file.symlink_to("current/keys")
    with (
        serving(served.settings.model_copy(update={"keys_file": file})) as api,
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
    ):

        def let_in() -> list[str]:
            return [name for name in lines if http.get("/status", headers=bearer(name)).status_code == 200]

        def state() -> Any:
            return http.get("/status", headers=bearer("k2")).json()["keys"]

        assert (let_in(), state()) == (["k1", "k2"], "on")
        swap("k2")
        becomes(let_in, ["k2"])
        link.joinpath("keys").write_text("k1 broken\n")
        becomes(state, "stale")
        assert let_in() == ["k2"]
        file.unlink()
        becomes(let_in, [])
        assert http.get("/status").status_code == 401
        assert http.get("/readyz").is_success
        file.write_text("".join(lines.values()))
        becomes(let_in, ["k1", "k2"])
        assert state() == "on"


def test_a_first_key_closes_a_server_that_was_open(served: Any, serving: Serving, tmp_path: Path) -> None:
    folder = served.settings.data_dir
    settings = served.settings.model_copy(
        update={"data_dir": tmp_path, "redis_url": (folder / "queue.address").read_text().strip()}
    )
    with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:
        job = http.post("/generate", json=BODY).json()["id"]
        (tmp_path / "keys").write_text(f"{Key('ali', sha256('k1'))}\n")
        becomes(lambda: http.get(f"/jobs/{job}").status_code, 401)
        assert http.get(f"/jobs/{job}", headers=bearer("k1")).json()["code"] == "job_not_found"  # nobody's


def test_a_foreign_job_is_no_job(served: Any, serving: Serving, keys: Any, tmp_path: Path) -> None:
    settings = served.settings.model_copy(update=keys("ali", "bea"))
    with (tmp_path / "keys").open("a") as file:
        file.write(f"{Key('ali', sha256('new'))}\n")  # of the same caller
    unknown = "0123456789abcdef01234567"
    with serving(settings.model_copy(update={"result_ttl_seconds": 1})) as brief:
        gone = httpx.post(f"{brief.url}/generate", json=BODY, headers=bearer("ali") | ASYNC, timeout=PATIENCE).json()[
            "id"
        ]
    with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:
        job = http.post("/generate", json=BODY, headers=bearer("ali")).json()["id"]
        runs = http.post("/generate", json=BODY | {"num_samples": 4096}, headers=bearer("ali") | ASYNC).json()["id"]
        document = http.get("/openapi.json").json()
        calls = [
            (method.upper(), path.replace("{rank}", "1").replace("{candidate}", "0"))
            for path, methods in document["paths"].items()
            if "{job_id}" in path
            for method in methods
        ]
        assert len(calls) == 5

        def answer(method: str, path: str, job: str, key: str) -> tuple[int, str, list[str]]:
            found = http.request(method, path.replace("{job_id}", job), headers=bearer(key))
            text = re.sub(r'"request_id": "\w+"', "", found.text).replace(job, "JOB")
            return found.status_code, text, sorted(found.headers)

        becomes(lambda: http.get(f"/jobs/{gone}", headers=bearer("new")).status_code, 410)
        for method, path in calls:
            for own in (job, runs, gone):
                assert answer(method, path, own, "bea") == answer(method, path, unknown, "bea"), (method, path)
                assert answer(method, path, unknown, "bea")[0] == 404
        assert http.get(f"/jobs/{runs}", headers=bearer("ali")).json()["status"] in ("queued", "running")
        for method, path in sorted(calls, reverse=True):  # DELETE last but POST, of which there is none
            assert answer(method, path, job, "new")[0] == 200
        assert http.delete(f"/jobs/{runs}", headers=bearer("ali")).json()["status"] == "canceled"


def test_a_canceled_job_says_so_and_status_says_what_a_key_holds(idle: Settings, serving: Serving, keys: Any) -> None:
    settings = idle.model_copy(update=keys("ali", "bea") | {"max_queued_candidates": 100, "max_queued_tflops": 1000})
    with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:

        def holdings(key: str) -> Any:
            return http.get("/status", headers=bearer(key)).json()["caller"]

        job = http.post("/generate", json=BODY | {"num_samples": 40}, headers=bearer("ali") | ASYNC).json()["id"]
        assert [holdings(key)["candidates"] for key in ("ali", "bea")] == [40, 0]
        assert [holdings(key)["max_candidates"] for key in ("ali", "bea")] == [75, 45]
        assert 0 < holdings("ali")["tflops"] < holdings("ali")["max_tflops"]
        assert holdings("ali")["kept_bytes"] > 40 * 600
        refused = http.post("/generate", json=BODY | {"num_samples": 60}, headers=bearer("ali") | ASYNC)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert "40 candidates of this key wait, and 60 more would pass its limit of 75" in refused.json()["detail"]
        for answer in (
            http.delete(f"/jobs/{job}", headers=bearer("ali")),
            http.get(f"/jobs/{job}", headers=bearer("ali")),
        ):
            assert (answer.json()["status"], answer.json()["prompt"]) == ("canceled", "")
        events = http.get(f"/jobs/{job}/events", headers=bearer("ali")).text
        assert "job_canceled" in events
        assert holdings("ali") == {
            "candidates": 0, "max_candidates": 75, "tflops": 0, "max_tflops": 750,
            "image_bytes": 0, "max_image_bytes": 402_653_184,
            "kept_bytes": 4096, "max_kept_bytes": holdings("bea")["max_kept_bytes"] + 3072,
        }  # fmt: skip


def test_callers_do_not_share_idempotency_keys(served: Any, serving: Serving, keys: Any) -> None:
    with (
        serving(served.settings.model_copy(update=keys("k1", "k2"))) as api,
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
    ):

        def call(key: str, prompt: str = "p") -> httpx.Response:
            headers = bearer(key) | {"Idempotency-Key": "same"}
            return http.post("/generate", json={"prompt": prompt}, headers=headers)

        assert call("k1").json()["id"] == call("k1").json()["id"]
        assert call("k2", "another").status_code == 200
        theirs = http.post(
            "/v1/images/generations", json={"prompt": "p"}, headers=bearer("k2") | {"Idempotency-Key": "same"}
        )
        assert (theirs.status_code, call("k1").json()["id"] in theirs.text) == (400, False)


@pytest.mark.parametrize("open_book", [False, True])
def test_a_submission_is_logged_with_its_caller_and_its_prompt_only_if_asked(
    open_book: bool, served: Any, serving: Serving, keys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bestofn.requests")
    with serving(served.settings.model_copy(update={"log_prompts": open_book, **keys("ali")})) as api:
        assert httpx.post(f"{api.url}/generate", json=BODY, headers=bearer("ali"), timeout=PATIENCE).is_success
    (told,) = (record.msg for record in caplog.records if record.name == "bestofn.requests")
    assert isinstance(told, dict)
    prompt = ("prompt", "a red star") if open_book else ("prompt_sha256", sha256("a red star")[:12])
    assert {("caller", "ali"), prompt} <= told.items()
    assert ("a red star" in str(told)) is open_book
    assert sha256("ali")[:12] not in caplog.text


def test_every_answer_says_what_browsers_may_do_with_it(served: Any, serving: Serving, keys: Any) -> None:
    with (
        serving(served.settings.model_copy(update=keys("k1"))) as api,
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
    ):
        place = http.post("/generate", json=BODY, headers=bearer("k1")).headers["location"]
        paths = ("/", "/docs", "/redoc", "/livez", "/nothing", "/status", place, f"{place}/images/1", f"{place}/events")
        answers = {path: http.get(path, headers=bearer("k1")) for path in paths}
        answers["no key"] = http.get(place)
        for path, answer in answers.items():
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["referrer-policy"] == "no-referrer", path
            policy = answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert ("default-src 'none'" in policy) == (path not in ("/", "/docs", "/redoc")), path
            assert "unsafe-inline" not in policy.replace("style-src 'self' 'unsafe-inline'", ""), path
            if path.startswith("/jobs"):
                assert answer.headers["cache-control"] == "no-store", path
