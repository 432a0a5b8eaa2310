"""Slot policy: every candidate is placed once, in order, interactive before batch; no batch is larger than need be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.service.engine.batch_sizes import Sizes, bucket, forwards, sizes_for
from bestofn.service.engine.scheduler import Group, Waiting, refill, room, split_due, to_close, turn

GROUPS = [(64, 64), (96, 64), (128, 128)]
heats = st.builds(
    Waiting,
    owner=st.tuples(st.integers(0, 99).map(str), st.integers(0, 9)),
    group=st.sampled_from(GROUPS),
    interactive=st.booleans(),
    candidates=st.lists(st.integers(0, 100), min_size=1, max_size=20, unique=True).map(tuple),
    draft=st.booleans(),
)


@given(st.lists(heats, max_size=8, unique_by=lambda heat: heat.owner[0]), st.integers(1, 9))
def test_refill_places_every_candidate_once_in_order_of_admission(waiting, slots):
    seen, rounds = [], 0
    left = tuple(waiting)
    while left:
        placements, after = refill({group: range(slots) for group in GROUPS}, left)
        assert placements, "free slots and waiting candidates, but nothing is placed"
        assert len({(p.waiting.group, p.slot) for p in placements}) == len(placements)
        groups_left = {heat.group for heat in after}
        for group in groups_left:
            assert sum(p.waiting.group == group for p in placements) == slots, (
                "a slot stays empty while candidates wait"
            )
        seen += [(p.waiting.owner, p.candidate) for p in placements]
        left, rounds = after, rounds + 1
    expected = [(heat.owner, candidate) for heat in waiting for candidate in heat.candidates]
    assert sorted(seen) == sorted(expected)
    for group in GROUPS:
        owners = {heat.owner for heat in waiting if heat.group == group}
        order = sorted((h for h in waiting if h.group == group), key=lambda heat: not heat.interactive)
        assert [entry for entry in seen if entry[0] in owners] == [
            (heat.owner, candidate) for heat in order for candidate in heat.candidates
        ]


def test_refill_prefers_interactive_heats_that_came_later():
    batch = Waiting(("slow", 0), (64, 64), False, tuple(range(16)), draft=True)
    urgent = Waiting(("fast", 0), (64, 64), True, (0, 5))
    placements, left = refill({(64, 64): [1, 5, 6]}, (batch, urgent))
    assert [(p.slot, p.waiting.owner[0], p.candidate) for p in placements] == [
        (1, "fast", 0),
        (5, "fast", 5),
        (6, "slow", 0),
    ]
    assert [p.waiting.draft for p in placements] == [False, False, True]
    assert left == (Waiting(("slow", 0), (64, 64), False, tuple(range(1, 16)), draft=True),)


def test_groups_take_turns_and_interactive_ones_go_first():
    busy = dict.fromkeys(GROUPS, False)
    last, order = None, []
    while len(order) < 6:
        last = turn(busy, last)
        order.append(last)
    assert order == GROUPS * 2
    assert turn(busy | {GROUPS[1]: True}, GROUPS[1]) == GROUPS[1]
    with pytest.raises(ValueError, match="no group"):
        turn({}, None)


def test_idle_groups_stay_open_in_order_of_their_last_use():
    used = [Group(side, side) for side in (32, 64, 96, 128, 160)]
    assert to_close(used, busy=used[:1], always=used[1:2], kept=2) == [used[2]]
    assert to_close(used, busy=used[4:], always=(), kept=0) == used[:4]
    assert to_close(used[:2], busy=(), always=(), kept=2) == []


@given(st.lists(st.integers()), st.integers(1, 7), st.booleans())
def test_a_stage_takes_full_batches_unless_a_heat_waits_for_it(waiting, size, flush):
    due, later = split_due(waiting, size, flush=flush)
    assert due + later == waiting
    assert later == [] if flush else len(later) < size and len(due) % size == 0


def test_room_is_two_sets_of_slots():
    assert [room(8, held) for held in (0, 7, 16, 40)] == [16, 9, 0, 0]


def test_batches_shrink_with_the_work_of_an_item():
    sizes = sizes_for("cpu", slots=16)
    assert sizes.strict
    assert sizes.batch(sizes.rows, 0.0002) == 8
    assert sizes.batch(sizes.rows, 0.02) == 2
    assert sizes.batch(sizes.rows, 0.84) == 1, "a 1.6B transformer at 512 pixels pays for no padding"
    gpu = sizes_for("cuda")
    decoded = [gpu.images(side, side, 1.0) for side in (512, 1024, 1536, 2048, 4096)]
    assert decoded == [8, 8, 3, 2, 1], "as many pixels as eight images of 1,024 px have"
    assert not gpu.strict
    assert sizes_for("cuda", reproducible="strict").strict
    assert [bucket(rows, 60) for rows in (1, 2, 3, 8, 9, 17, 34, 57)] == [1, 2, 4, 8, 16, 24, 40, 60]
    assert sizes_for("cpu", tflops=0.0002, cores=4).parallel == 4
    assert sizes_for("cpu", tflops=0.84, cores=4).parallel == 1, "the cores share each operator of a large model"
    assert sizes_for("cpu", reproducible="fast").rows == 16
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(slots=1, strict=True, rows=0, decode=1, judge=1)


@given(st.integers(1, 64), st.integers(1, 64), st.booleans(), st.integers(1, 5))
def test_forwards_take_every_row_once(used, lane, strict, parallel):
    lanes = forwards(used, lane, strict, parallel)
    assert [row for rows in lanes for row in rows][:used] == list(range(used))
    assert max(map(len, lanes)) <= lane
    assert all(len(rows) == lane for rows in lanes) or not strict
    assert lanes[-1].start < used


def test_forwards_of_a_fast_engine_share_the_rows_among_the_cores():
    assert forwards(32, 16, strict=False, parallel=2) == [range(16), range(16, 32)]
    assert forwards(8, 16, strict=False, parallel=2) == [range(4), range(4, 8)]
    assert forwards(2, 16, strict=False, parallel=4) == [range(2)], "a row alone is not compiled"
    assert forwards(34, 64, strict=False) == [range(40)]
    assert forwards(8, 8, strict=True, parallel=2) == forwards(3, 8, strict=True, parallel=2) == [range(8)]
