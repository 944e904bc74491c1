"""How Lightning's Trainer saves and loads checkpoints: plugin ``CheckpointFiles``."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from alignkit.checkpoints.folder import loaded
from alignkit.checkpoints.forms import remove, write


class CheckpointFiles(CheckpointIO):
    """Checkpoints as files or folders of shards that verify themselves, without pickle."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError("CheckpointFiles: a file takes no storage_options")
        write(Path(path), checkpoint)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads one.

        Args:
            path: the file, or the folder of shards.
            map_location: the processes of a sharded run, each of which asks and gets its share.
            weights_only: no code is ever run.
        """
        mesh = map_location if isinstance(map_location, DeviceMesh) else None
        found, state = loaded(Path(path), "--ckpt_path", mesh)
        if found.is_dir():
            return state
        # a run goes on for days, and its state must not depend on a file that long
        owned: dict[str, Any] = apply_to_collection(state, Tensor, torch.clone)
        return owned

    def remove_checkpoint(self, path: _PATH) -> None:
        remove(Path(path))
