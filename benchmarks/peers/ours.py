"""A contestant: `alignkit fit` as users run it. Its steps include the Trainer, the loader and the guards."""

import sys
from typing import Any

import lightning.pytorch as pl
from turns import Turns

from alignkit import callbacks
from alignkit.cli import main
from alignkit.module import AlignModule

turns = Turns()
begin = callbacks.Throughput.on_train_batch_start


def paced(self: callbacks.Throughput, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
    """From here to here is a step, with all that comes around it."""
    assert isinstance(module, AlignModule)
    turns.next(module.seen.get("loss", 0.0), module.policy)
    begin(self, trainer, module, batch, batch_idx)


callbacks.Throughput.on_train_batch_start = paced  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
