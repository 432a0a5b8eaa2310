"""Effort and budget: measured options for a name, or for what a job may cost."""

from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from bestofn.service.core.budget import Prices, best, planned
from tests.waiting import PATIENCE

PRICES = st.builds(
    Prices,
    step=st.floats(1e-4, 20.0),
    verdict=st.floats(1e-4, 20.0),
    steps=st.integers(1, 50),
)


@given(PRICES, st.floats(1e-3, 1e5), st.floats(1.0, 10.0))
def test_a_plan_keeps_its_budget_and_a_larger_budget_is_no_worse(prices: Prices, budget: float, more: float) -> None:
    plans = planned(prices, 4096)
    chosen, richer = best(plans, budget), best(plans, budget * more)
    if chosen is None:
        assert all(plan.expected_tflops > budget for plan in plans)
        return
    assert chosen.expected_tflops <= budget
    assert chosen.expected_tflops <= chosen.at_most_tflops
    assert chosen.draft is None or chosen.draft.num_inference_steps < prices.steps
    assert all(plan.score_on_shapes <= chosen.score_on_shapes for plan in plans if plan.expected_tflops <= budget)
    assert richer is not None
    assert richer.score_on_shapes >= chosen.score_on_shapes


def test_the_202_quotes_the_plan_and_the_result_has_the_bill(served: Any) -> None:
    body = {"prompt": "a photo of a ring", "effort": "low"}
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as http:
        answer = http.post("/generate", json=body, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202
        quoted = answer.json()["plan"]
        result = http.get(answer.headers["location"], headers={"Prefer": "wait=120"}).json()
    assert result["plan"] == quoted
    assert result["parameters"]["num_samples"] == quoted["num_samples"]
    assert 0 < result["usage"]["tflops"] <= 1.1 * quoted["at_most_tflops"]
