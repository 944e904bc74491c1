"""Command line of the trainings that made the shipped weights.

python -m alignkit_emoji.build.train fit --config configs/emoji/vae.yaml
"""

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI

from alignkit_emoji.build.data import PictureData


def main() -> None:
    """Runs LightningCLI over the three training modules."""
    LightningCLI(
        LightningModule,
        PictureData,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )


if __name__ == "__main__":
    main()
