"""The queue's pure policies: how jobs are cut into heats, and the fate of a heat by its deliveries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.service.core.heat_schedule import DEFAULT_HEAT_SIZE, heat_size
from bestofn.service.core.scheduling import DeliveryAction, claim_count, delivery_action


@given(num_samples=st.integers(1, 4096), capacities=st.lists(st.integers(1, 256), max_size=32))
def test_a_heat_has_1_to_16_candidates_and_no_more_than_the_job(num_samples: int, capacities: list[int]) -> None:
    size = heat_size(num_samples, capacities)
    assert 1 <= size <= min(DEFAULT_HEAT_SIZE, num_samples)


@given(num_samples=st.integers(1, 4096), workers=st.integers(1, 32), capacity=st.integers(1, 256))
def test_equal_workers_get_equal_numbers_of_heats(num_samples: int, workers: int, capacity: int) -> None:
    heats = -(-num_samples // heat_size(num_samples, [capacity] * workers))
    fewest = -(-num_samples // DEFAULT_HEAT_SIZE)
    assert heats <= -(-fewest // workers) * workers  # as few rounds as heats of 16 would need


@pytest.mark.parametrize(
    ("num_samples", "capacities", "size"),
    [
        pytest.param(32, [], 16, id="nobody-is-live"),
        pytest.param(32, [16], 16, id="one-worker"),
        pytest.param(8, [16, 16], 4, id="two-workers-share"),
        pytest.param(34, [16, 16], 9, id="no-tail-of-two"),
        pytest.param(64, [4, 64], 4, id="the-small-worker-gets-a-small-share"),
        pytest.param(1, [16, 16], 1, id="one-candidate"),
    ],
)
def test_heat_size(num_samples: int, capacities: list[int], size: int) -> None:
    assert heat_size(num_samples, capacities) == size


@pytest.mark.parametrize(("num_samples", "capacities"), [(0, [4]), (4, [0])])
def test_numbers_must_be_positive(num_samples: int, capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        heat_size(num_samples, capacities)


def test_a_heat_runs_three_times_in_company_once_alone_and_then_no_more() -> None:
    assert [delivery_action(n, 3) for n in range(1, 7)] == [DeliveryAction.RUN] * 3 + [DeliveryAction.ISOLATE] + [
        DeliveryAction.DEAD_LETTER
    ] * 2


def test_claims_fit_the_room() -> None:
    assert [claim_count(room) for room in (1, 16, 31, 64)] == [1, 1, 1, 4]
