"""Checkpoints of five families of pipelines with random weights: as small as their classes allow."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("a", "photo", "of", "red", "blue", "green", "star", "ring", "cross", "grey", "user", "assistant")
CHAT = "{% for m in messages %}user {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
VOCABULARY, WIDTH = 64, 32
FLOW = {"shift": 3.0}


def _tokenizer(longest: int) -> transformers.PreTrainedTokenizerFast:
    special = ("<pad>", "<unk>", "<s>", "</s>")
    words = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=longest,
        chat_template=CHAT,
    )


def _clip(projected: bool = True) -> transformers.PreTrainedModel:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        eos_token_id=3,
        bos_token_id=2,
        pad_token_id=0,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def _t5() -> transformers.PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=2, num_heads=2, is_encoder_decoder=False
    )
    return transformers.T5EncoderModel(config)


def _vae(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        layers_per_block=1,
        shift_factor=0.1,
        scaling_factor=0.3,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
    )


def _pixart() -> diffusers.DiffusionPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        cross_attention_dim=16,
        in_channels=4,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=_tokenizer(300),
        text_encoder=_t5(),
        vae=_vae(4),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _sd3() -> diffusers.DiffusionPipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=96,
    )
    t5 = _t5()
    t5 = transformers.T5EncoderModel(transformers.T5Config(**(t5.config.to_dict() | {"d_model": 2 * WIDTH})))
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        vae=_vae(4),
        text_encoder=_clip(),
        tokenizer=_tokenizer(77),
        text_encoder_2=_clip(),
        tokenizer_2=_tokenizer(77),
        text_encoder_3=t5,
        tokenizer_3=_tokenizer(512),
    )


def _flux() -> diffusers.DiffusionPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        vae=_vae(4),
        text_encoder=_clip(projected=False),
        tokenizer=_tokenizer(77),
        text_encoder_2=_t5(),
        tokenizer_2=_tokenizer(512),
        transformer=transformer,
    )


def _z_image() -> diffusers.DiffusionPipeline:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    text = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
        vae=_vae(4),
        text_encoder=transformers.Qwen3Model(text),
        tokenizer=_tokenizer(512),
        transformer=transformer,
    )


def _sdxl() -> diffusers.DiffusionPipeline:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=2,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
        vae=_vae(4),
        text_encoder=_clip(projected=False),
        tokenizer=_tokenizer(77),
        text_encoder_2=_clip(),
        tokenizer_2=_tokenizer(77),
    )


FAMILIES: dict[str, Callable[[], diffusers.DiffusionPipeline]] = {
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "z_image": _z_image,
    "sdxl": _sdxl,
}


def make_pipeline(family: str, folder: Path) -> Path:
    """Write a checkpoint of a family and return its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        FAMILIES[family]().save_pretrained(folder)
    return folder
