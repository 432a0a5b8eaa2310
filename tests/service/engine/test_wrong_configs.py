"""A field of the wrong type in any file of a model's folder: one line with the folder, whatever a library raises."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bestofn.judge.loader import JudgeFolderError
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import CheckpointError
from bestofn.models.generator import Generator
from bestofn.models.pipelines.generator import PipelineGenerator
from bestofn.models.random_init.checkpoint import make_random_checkpoint
from bestofn.service.core.settings import Settings
from bestofn.service.engine.checker_loader import find_checker
from bestofn.service.engine.judge_loader import find_judge
from bestofn.service.engine.loader import checkpoint_work
from tests.judge.tiny_models import make_clip, make_vit, make_vlm
from tests.tiny_pipelines import make_pipeline

VILA = Path(__file__).parents[2] / "fixtures" / "vila" / "checkpoint"
CPU = torch.device("cpu")


def load_generator(folder: Path) -> None:
    checkpoint = Checkpoint.resolve(str(folder))
    checkpoint_work(checkpoint, CPU)
    generator = Generator(checkpoint)
    generator.flops(generator.defaults.width, generator.defaults.height)
    generator.warm_up()


def load_checker(folder: Path) -> None:
    checker = find_checker(Settings(image_checker=str(folder)))
    assert checker is not None
    checker.load(CPU)


MAKES: dict[str, Callable[[Path], object]] = {
    "vila": lambda folder: shutil.copytree(VILA, folder),
    "vlm": lambda folder: make_vlm("internvl", folder),
    "clip": lambda folder: make_clip("clip", folder),
    "checker": lambda folder: make_vit(folder, [0.0, 1.0]),
    "sana": lambda folder: make_random_checkpoint("tiny", folder, seed=7),
    "flux": lambda folder: make_pipeline("flux", folder),
}
LOADS: dict[str, Callable[[Path], object]] = {
    "vila": lambda folder: find_judge(str(folder)).load(CPU),
    "vlm": lambda folder: find_judge(f"vlm:{folder}").load(CPU),
    "clip": lambda folder: find_judge(f"clip:{folder}").load(CPU),
    "checker": load_checker,
    "sana": load_generator,
    "flux": lambda folder: PipelineGenerator(Checkpoint.resolve(str(folder), any_pipeline=True)),
}
WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("vila", "bestofn.json", {"known_words": 5}),
    ("vila", "config.json", {"max_tiles": []}),
    ("vila", "llm/config.json", {"attention_dropout": "x"}),
    ("vila", "llm/tokenizer_config.json", {"model_max_length": "x"}),
    ("vila", "vision_tower/config.json", {"image_size": 0}),
    ("vila", "vision_tower/preprocessor_config.json", {"size": "x"}),
    ("vila", "vision_tower/preprocessor_config.json", {"image_std": []}),
    ("vlm", "config.json", {"quantization_config": [1]}),
    ("vlm", "config.json", {"vision_feature_layer": []}),
    ("vlm", "generation_config.json", {"pad_token_id": []}),
    ("vlm", "preprocessor_config.json", {"max_patches": None}),
    ("clip", "config.json", {"projection_dim": 0}),
    ("clip", "preprocessor_config.json", {"size": [1]}),
    ("clip", "tokenizer_config.json", {"tokenizer_class": []}),
    ("checker", "config.json", {"id2label": 0}),
    ("checker", "config.json", {"num_attention_heads": 0}),
    ("checker", "preprocessor_config.json", {"image_mean": {}}),
    ("sana", "bestofn.json", {"complex_human_instruction": 5}),
    ("sana", "text_encoder/config.json", {"head_dim": {}}),
    ("sana", "text_encoder/config.json", {"num_key_value_heads": 0}),
    ("sana", "tokenizer/tokenizer_config.json", {"model_max_length": []}),
    ("sana", "vae/config.json", {"decoder_norm_types": {}}),
    ("sana", "vae/config.json", {"encoder_block_out_channels": True}),
    ("flux", "tokenizer/tokenizer_config.json", {"model_max_length": [1]}),
]


@pytest.mark.filterwarnings("ignore")  # libraries warn of such values too
@pytest.mark.parametrize(("kind", "file", "fields"), WRONG)
def test_a_field_of_the_wrong_type_is_refused_in_one_line(
    kind: str, file: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    MAKES[kind](tmp_path / kind)
    path = tmp_path / kind / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))
    with pytest.raises((CheckpointError, JudgeFolderError)) as caught:
        LOADS[kind](tmp_path / kind)
    assert str(tmp_path / kind) in str(caught.value)
    assert "\n" not in str(caught.value)
