"""Which GPU holds which checkpoint: what stays leaves room to decode, and the page shows what is computed."""

from pathlib import Path

import torch

from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.service.doctor.findings import GIB
from bestofn.service.doctor.fit_table import CARDS, plans, table
from bestofn.service.engine.memory_share import work_of

PAGE = Path(__file__).parents[3] / "docs" / "operate" / "deployment.md"


def test_weights_that_stay_leave_room_for_an_image_its_prompts_and_some_rows() -> None:
    for model, side, card, planned in plans():
        case = f"{model} at {side} px on {card}"
        layers = 60 if model == "4.8B" else 20
        cells = int(side.replace(",", "")) // 32
        config = LinearDiTConfig.from_dict({"num_layers": layers, "sample_size": cells})
        work = work_of(config, 32, 128, 300, torch.bfloat16.itemsize, "cuda")
        weights = planned.used - planned.work
        alone = planned.stay == ("transformer",)  # it leaves memory while an image is decoded
        assert alone or weights + work.reserved <= CARDS[card] * GIB, case
        assert planned.fits, case
        assert planned.rows >= 2, case
    assert work_of(LinearDiTConfig.from_dict({"sample_size": 128}), 32, 128, 300, 2, "cuda").image < 2.1 * GIB


def test_the_page_has_the_computed_table() -> None:
    assert table() in PAGE.read_text(), "python -m bestofn.service.doctor.fit_table prints it"
