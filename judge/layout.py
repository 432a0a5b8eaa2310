"""Names in a judge's folder, in the layout of VILA checkpoints; needs no torch."""

PARTS = ("llm", "vision_tower", "mm_projector")
MODEL_TYPES = ("vila", "llava_llama")
PROJECTORS = ("mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix")
