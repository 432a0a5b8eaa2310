"""What docs/operate/reliability.md promises, in short; tests/chaos does the same at length, on processes that are
killed.
"""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bestofn.service.api import rate_limit
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import RAMBLES
from tests.waiting import PATIENCE

Serving = Callable[[Settings], AbstractContextManager[Any]]
CHAOS = Path(__file__).parents[2] / "chaos" / "run.py"
ASYNC = {"Prefer": "respond-async"}


def client_of(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None))


async def backlog(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    return list((await http.get("/status")).json()["queue"]["by_priority"].values())


async def test_fifty_posts_with_one_key_make_one_job(served: Any) -> None:
    async with client_of(served.url) as http:
        body, headers = {"prompt": "p", "num_samples": 8}, {"Idempotency-Key": "fifty at once"}
        answers = await asyncio.gather(
            *(http.post("/generate", json=body, headers=headers) for _ in range(50)),
            *(http.post("/generate", json=body | {"seed": 1}, headers={"Idempotency-Key": "two"}) for _ in range(2)),
        )
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers[:50]}) == 1
        assert sum("Idempotent-Replayed" not in answer.headers for answer in answers[:50]) == 1
        replay = await http.post("/generate", json=body, headers=headers)
        assert replay.json() == answers[0].json()
        other = await http.post("/generate", json=body | {"seed": 1}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_a_judge_that_rambles_puts_those_candidates_last_and_is_reported(served: Any) -> None:
    result = httpx.post(
        f"{served.url}/generate", json={"prompt": RAMBLES, "num_samples": 9, "seed": 0}, timeout=PATIENCE
    ).json()
    order = [candidate["verdict"] for candidate in sorted(result["candidates"], key=lambda one: one["rank"])]
    kinds = ["none" if v["yes_logit"] is None else v["answer"] for v in order]
    assert kinds[3:] == ["other"] * 3 + ["none"] * 3
    assert "the judge gave 6 of 9 candidates no usable verdict" in result["warnings"][0]


async def test_most_of_many_jobs_are_canceled_and_the_others_finish(served: Any) -> None:
    async with client_of(served.url) as http:

        async def live(number: int) -> str:
            # A job that is canceled would take minutes, so that it cannot end first.
            size = {"num_samples": 1024, "num_inference_steps": 100} if number % 10 else {"num_samples": 32}
            body = {"prompt": f"p {number}", **size}
            place = (await http.post("/generate", json=body, headers=ASYNC)).headers["Location"]
            if number % 10:
                await asyncio.sleep(random.uniform(0.0, 0.5))
                return str((await http.delete(place)).json()["status"])
            while (job := (await http.get(place, headers={"Prefer": "wait=30"})).json())["status"] != "succeeded":
                assert job["status"] in ("queued", "running")
            return "succeeded"

        ends = await asyncio.gather(*(live(number) for number in range(60)))
        assert set(ends[::10]) == {"succeeded"}
        assert ends.count("canceled") == 54
        async with asyncio.timeout(PATIENCE):
            while any(load["jobs"] or load["candidates"] for load in await backlog(http)):
                await asyncio.sleep(0.05)


def test_a_flood_is_refused_at_once_and_the_next_caller_is_not(
    idle: Settings, serving: Serving, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_queued_candidates_per_key": 64, **keys("flood", "other")}
    monkeypatch.setattr(rate_limit, "TOKENS_PER_SECOND", 0.0)  # a slow machine would earn tokens in between

    async def run(url: str) -> None:
        async with client_of(url) as http:
            flood = {"Authorization": "Bearer flood", **ASYNC}
            held = await http.post("/generate", json={"prompt": "p", "num_samples": 64}, headers=flood)
            assert held.status_code == 202
            for _ in range(5):  # the first ones ask the queue, and so use up what looks there are
                body = {"prompt": "p", "num_samples": 4}
                answers = await asyncio.gather(*(http.post("/generate", json=body, headers=flood) for _ in range(20)))
                assert {answer.status_code for answer in answers} == {429}
                assert all(float(answer.headers["retry-after-ms"]) >= 1000 for answer in answers)
            unread = await http.post("/generate", content=b"no JSON", headers=flood | {"Content-Type": "text/plain"})
            assert (unread.status_code, unread.json()["code"]) == (429, "overloaded")
            other = await http.post("/generate", json=body, headers={"Authorization": "Bearer other", **ASYNC})
            assert other.status_code == 202
            monkeypatch.undo()
            await http.delete(held.headers["Location"], headers=flood)
            async with asyncio.timeout(PATIENCE):  # until the door has a look left for it
                while (answer := await http.post("/generate", json=body, headers=flood)).status_code != 202:
                    assert answer.status_code == 429
                    await asyncio.sleep(0.1)

    with serving(idle.model_copy(update=limits)) as api:
        asyncio.run(run(api.url))


def test_chaos_prints_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(CHAOS), "idempotency", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "chaos.json").read_text())["sections"]["idempotency"]["figures"]
    assert all(figure["kept"] is not False for figure in figures)
    assert figures[0]["promise"] in done.stdout
