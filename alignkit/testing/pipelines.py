"""Tiny random pipelines of the classes that users have, written to disk in a fraction of a second.

They draw noise; what they are for is the code around them. Each takes prompts of at most 14 letters and a
picture of 16 x 16 pixels, which is a latent of 8 x 8.
"""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

RESOLUTION = 16
TEXT_LENGTH = 16
TEXT_WIDTH = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_stable_diffusion(
    folder: Path, prediction_type: str = "epsilon", *, zero_snr: bool = False, seed: int = 0
) -> Path:
    """Writes a ``StableDiffusionPipeline`` of about 60,000 weights; returns its folder.

    Args:
        folder: where it is written.
        prediction_type: "epsilon" or "v_prediction".
        zero_snr: whether its schedule ends in pure noise, and pictures start there, as those of models tuned
            from Stable Diffusion 2 do.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        StableDiffusionPipeline(
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**_UNET, cross_attention_dim=TEXT_WIDTH),
            scheduler=_scheduler(prediction_type, zero_snr),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def tiny_stable_diffusion_xl(
    folder: Path, prediction_type: str = "epsilon", *, zeros: bool = True, seed: int = 0
) -> Path:
    """Writes a ``StableDiffusionXLPipeline`` of about 70,000 weights; returns its folder.

    Args:
        folder: where it is written.
        prediction_type: "epsilon" or "v_prediction".
        zeros: its ``force_zeros_for_empty_prompt``, true of SDXL base.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        unet = UNet2DConditionModel(
            **_UNET,
            cross_attention_dim=2 * TEXT_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        )
        StableDiffusionXLPipeline(
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, projection_dim=TEXT_WIDTH)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=_scheduler(prediction_type),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        ).save_pretrained(folder)
    return folder


def tiny_stable_diffusion_3(folder: Path, *, t5: bool = True, seed: int = 0) -> Path:
    """Writes a ``StableDiffusion3Pipeline`` of about 80,000 weights; returns its folder.

    Args:
        folder: where it is written.
        t5: whether its third text encoder is there.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        # both attentions of 3.5 medium, and of 3.0
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, projection_dim=TEXT_WIDTH)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, projection_dim=TEXT_WIDTH)),
            tokenizer_2=tokenizer,
            text_encoder_3=_t5() if t5 else None,
            tokenizer_3=_t5_tokenizer() if t5 else None,
        ).save_pretrained(folder)
    return folder


def tiny_flux(folder: Path, *, guidance_embeds: bool = True, seed: int = 0) -> Path:
    """Writes a ``FluxPipeline`` of about 60,000 weights; returns its folder.

    Args:
        folder: where it is written.
        guidance_embeds: whether it is told guidance, as FLUX.1 [dev] is and [schnell] is not.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
        ).save_pretrained(folder)
    return folder


def tiny_tokenizer(length: int = TEXT_LENGTH) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the letters and no words.

    Args:
        length: the most tokens of a text, its start and end among them.
    """
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(vocab=str(vocabulary), merges=str(merges), model_max_length=length)


_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def _autoencoder(**options: object) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
        **options,
    )


def _text_config(tokenizer: CLIPTokenizer, **options: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=4 + len(LETTERS),
        d_model=2 * TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def _t5_tokenizer() -> T5Tokenizer:
    """Knows the letters and no words; its text ends in ``</s>`` and is padded."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(letter, -3.0) for letter in LETTERS]
    return T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=TEXT_LENGTH)


def _scheduler(prediction_type: str, zero_snr: bool = False) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )
