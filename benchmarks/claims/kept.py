"""Keeps the policy at every validation; as its average, where one is named before this."""

from pathlib import Path

import lightning.pytorch as pl

from alignkit.files import write_tensors
from alignkit.module import AlignModule


class KeptSteps(pl.Callback):
    """Writes ``RUN/steps/<step>.safetensors`` whenever the run validates."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert pl_module.policy is not None
        path = Path(trainer.default_root_dir) / "steps" / f"{trainer.global_step}.safetensors"
        write_tensors(path, pl_module.policy.state_dict(), {"step": str(trainer.global_step)})
