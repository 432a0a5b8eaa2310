"""Tiny random checkpoints, written once a session."""

from pathlib import Path

import pytest

from bestofn.models.random_init.checkpoint import SCM, make_random_checkpoint

# name: what differs from the tiny layout
VARIANTS = {
    "tiny": {},
    "patch_position": {  # as the embedded default: patch 2, positions, float32-friendly Euler solver
        "transformer": {"patch_size": 2, "interpolation_scale": 1.0, "qk_norm": None, "sample_size": 16},
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        "bestofn": {"complex_human_instruction": [], "max_sequence_length": 40, "guidance_scale": 3.0},
    },
    "few_heads": {
        "transformer": {"num_layers": 3, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8, "mlp_ratio": 2},
        "vae": {"scaling_factor": 0.9},
        "scheduler": {"flow_shift": 2.0, "solver_type": "heun"},
    },
    "sprint": {
        "transformer": {"guidance_embeds": True},
        "scheduler": SCM,
        "bestofn": {"num_inference_steps": 2},
    },
}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by variant."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        name: make_random_checkpoint("tiny", root / name, seed=7, changes=changes) for name, changes in VARIANTS.items()
    }
