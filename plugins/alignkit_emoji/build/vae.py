"""Training of the autoencoder: 32x32 pictures to 8x8 latents of 8 channels."""

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from alignkit_emoji.build.data import PictureBatch, PictureData


class VAETraining(pl.LightningModule):
    """Trains an ``AutoencoderKL`` on pictures and writes it as a diffusers folder.

    Args:
        out: the pipeline folder; the autoencoder goes to its ``vae`` sub-folder.
        lr: peak learning rate of a one-cycle schedule.
        kl_weight: weight of the latents' divergence from a standard normal, per latent number.
        channels: width of each resolution, coarsest last.
        latent_channels: numbers in each latent pixel.
    """

    def __init__(
        self,
        out: Path,
        lr: float = 3e-3,
        kl_weight: float = 1e-4,
        channels: tuple[int, ...] = (16, 32, 64),
        latent_channels: int = 8,
    ) -> None:
        super().__init__()
        self.out, self.lr, self.kl_weight = out, lr, kl_weight
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=8,
            sample_size=32,
            mid_block_add_attention=False,
        )

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        flip_N = torch.rand(len(batch.image_NCHW)) < 0.5
        image_NCHW = torch.where(flip_N[:, None, None, None], batch.image_NCHW.flip(3), batch.image_NCHW)
        posterior = self.vae.encode(image_NCHW).latent_dist
        latent_NCHW = posterior.sample()
        decoded_NCHW = self.vae.decode(latent_NCHW).sample
        kl = posterior.kl().mean() / latent_NCHW[0].numel()
        loss: Tensor = (
            F.l1_loss(decoded_NCHW, image_NCHW) + F.mse_loss(decoded_NCHW, image_NCHW) + self.kl_weight * kl
        )
        self.log_dict({"loss": loss.detach(), "kl": kl.detach()}, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image_NCHW = batch[0]
        decoded_NCHW = self.vae.decode(self.vae.encode(image_NCHW).latent_dist.mode()).sample
        self.log("val/mse", F.mse_loss(decoded_NCHW, image_NCHW), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.vae.parameters(), self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Scales latents to unit spread and writes the folder, in half precision."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        with torch.no_grad():
            latents = [self.vae.encode(part).latent_dist.mode() for part in data.image_NCHW.split(256)]
        self.vae.register_to_config(scaling_factor=round(1 / torch.cat(latents).std().item(), 5))
        self.vae.half().save_pretrained(self.out / "vae")
