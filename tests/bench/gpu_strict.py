"""BESTOFN_REPRODUCIBLE=strict: the bytes of a candidate's image and verdict are the same alone, in other slots,
among other jobs and in another process."""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from figures import Measured, Table, at_most
from gpu_place import Place, engine, job, run

from bestofn.service.core.jobs import HeatOutcome
from bestofn.service.engine.engine import Engine

Bytes = dict[int, str]  # candidate -> hash of its image's bytes, which carry the verdict


def measure(place: Place) -> Iterator[Measured]:
    """Every process of these loads and draws the models anew."""
    rows: list[tuple[str | float, ...]] = []
    reference: Bytes = {}
    different = 0
    for process in (_first, _again):
        for what, found in _apart(process, place).items():
            reference = reference or found
            wrong = sum(reference[candidate] != data for candidate, data in found.items())
            rows.append((what, len(found), wrong))
            different += wrong
        yield Measured(
            [Table(("candidates", "compared", "different"), rows)],
            [at_most("images that differ", different, 0)],
        )


def _first(place: Place) -> dict[str, Bytes]:
    made, N, fields = _asked(place)
    found = {"in one batch": _hashes(run(made, job(made, N, **fields))["job"])}
    found["alone"] = {
        candidate: _hashes(run(made, job(made, 1, seed=candidate, **fields | {"top_k": 1}))["job"])[0]
        for candidate in (0, N - 1)
    }
    before = job(made, 3, id="before", prompt="two rings", guidance_scale=1.0, num_inference_steps=3, seed=77)
    side_stream = job(made, 4, id="among", prompt="a cross", negative_prompt="grey", seed=99, num_inference_steps=2)
    found["among other jobs"] = _hashes(run(made, before, job(made, N, **fields), side_stream)["job"])
    return found


def _again(place: Place) -> dict[str, Bytes]:
    made, N, fields = _asked(place)
    return {"in another process": _hashes(run(made, job(made, N, **fields))["job"])}


def _asked(place: Place) -> tuple[Engine, int, dict[str, Any]]:
    N = place.pick(11, 5)
    return engine(place, "1.6B", reproducible="strict"), N, {"num_inference_steps": place.pick(4, 2), "top_k": N}


def _hashes(outcomes: Sequence[HeatOutcome]) -> Bytes:
    images = {index: data for one in outcomes for index, data in one.images.items()}
    return {index: hashlib.sha256(data).hexdigest() for index, data in sorted(images.items())}


def _apart(call: Callable[[Place], dict[str, Bytes]], place: Place) -> dict[str, Bytes]:
    """A call's result in a fresh interpreter: a fork cannot use CUDA after a library has asked for its devices."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(call, place).result()
