"""Training of the base pipeline's text encoder and UNet on frozen latents."""

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from alignkit_emoji.build.data import CAPTIONS, PictureBatch, PictureData
from alignkit_emoji.build.tokenizer import MAX_LENGTH, build_tokenizer

GRID_COLUMNS = 24
GRID_ROWS = 4


class BaseTraining(pl.LightningModule):
    """Trains a small ``StableDiffusionPipeline`` around a finished autoencoder; writes a diffusers folder.

    Args:
        out: the pipeline folder; its ``vae`` must be there.
        lr: peak learning rate of a one-cycle schedule.
        caption_dropout: share of pictures trained with the empty caption, for classifier-free guidance.
        channels: width of the UNet's resolutions, coarsest last.
        text_width: width of the text encoder, and of the UNet's cross-attention.
        text_layers: depth of the text encoder.
    """

    def __init__(
        self,
        out: Path,
        lr: float = 1.5e-3,
        caption_dropout: float = 0.1,
        channels: tuple[int, ...] = (64, 128),
        text_width: int = 64,
        text_layers: int = 2,
    ) -> None:
        super().__init__()
        self.out, self.lr, self.caption_dropout = out, lr, caption_dropout
        self.vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).requires_grad_(False)
        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=self.vae.config.latent_channels,
            out_channels=self.vae.config.latent_channels,
            down_block_types=("CrossAttnDownBlock2D",) * len(channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            cross_attention_dim=text_width,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        self.unet.to(memory_format=torch.channels_last)  # a tenth faster on a CPU
        self.text_width, self.text_layers = text_width, text_layers

    token_MTL: Tensor
    empty_L: Tensor
    latent_NCHW: Tensor

    def setup(self, stage: str) -> None:
        """Encodes all pictures and tokenizes all captions once."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        self.concepts = data.concepts
        words = {word for text in [*CAPTIONS, *data.concepts] for word in text.replace("{}", "").split()}
        self.tokenizer = build_tokenizer(words)
        config = CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.text_encoder = CLIPTextModel(config)
        captions = [caption.format(concept) for concept in data.concepts for caption in CAPTIONS]
        self.register_buffer(
            "token_MTL", self.tokens(captions).view(len(data.concepts), len(CAPTIONS), -1), False
        )
        with torch.no_grad():
            modes = [self.vae.encode(part).latent_dist.mode() for part in data.image_NCHW.split(256)]
        self.register_buffer("latent_NCHW", torch.cat(modes) * self.vae.config.scaling_factor, False)
        self.register_buffer("empty_L", self.tokens([""])[0], False)

    def tokens(self, captions: list[str]) -> Tensor:
        """Token numbers of captions, padded to the tokenizer's length."""
        encoded = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        token_NL: Tensor = encoded.input_ids
        return token_NL

    def error(self, batch: PictureBatch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise, with random captions, times and noise."""
        count = len(batch.concept_N)
        latent_NCHW = self.latent_NCHW[batch.row_N]
        wording_N = torch.randint(len(CAPTIONS), (count,), generator=generator)
        dropped_N = torch.rand(count, generator=generator) < self.caption_dropout
        token_NL = torch.where(dropped_N[:, None], self.empty_L, self.token_MTL[batch.concept_N, wording_N])
        noise_NCHW = torch.randn(latent_NCHW.shape, generator=generator)
        t_N = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        noised_NCHW = self.scheduler.add_noise(latent_NCHW, noise_NCHW, t_N)
        text_NLD = self.text_encoder(token_NL).last_hidden_state
        return F.mse_loss(self.unet(noised_NCHW, t_N, text_NLD).sample, noise_NCHW)

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.global_step)
        loss = self.error(batch, generator)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(batch_idx)
        self.log("val/mse", self.error(PictureBatch(*batch), generator), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Writes the pipeline as it stands, and real pictures above generated ones."""
        if self.trainer.sanity_checking:
            return
        pipeline = self.pipeline()
        pipeline.save_pretrained(self.out)
        self.grid(pipeline).save(self.out / "real_and_generated.png")

    def on_fit_end(self) -> None:
        """Writes the pipeline in half precision, as it is shipped."""
        self.unet.half()
        self.text_encoder.half()
        self.vae.half()
        self.pipeline().save_pretrained(self.out)

    def pipeline(self) -> StableDiffusionPipeline:
        """The networks as they stand, in a pipeline that shares them."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def grid(self, pipeline: StableDiffusionPipeline, scale: int = 2) -> Image.Image:
        """One row of real pictures of spread concepts, then rows generated at guidance 3 in 20 DDIM steps."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = [int(i * len(self.concepts) / GRID_COLUMNS) for i in range(GRID_COLUMNS)]
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        images = pipeline(
            [self.concepts[row] for row in rows] * GRID_ROWS,
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=generator,
        ).images
        first_N = [int((data.concept_N == row).nonzero()[0]) for row in rows]
        real = [
            Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).byte().numpy())
            for image in data.image_NCHW[first_N]
        ]
        sheet = Image.new("RGB", (GRID_COLUMNS * 32, (GRID_ROWS + 1) * 32))
        for i, image in enumerate([*real, *images]):
            sheet.paste(image, (i % GRID_COLUMNS * 32, i // GRID_COLUMNS * 32))
        return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, self.trainer.max_steps, pct_start=0.05
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
