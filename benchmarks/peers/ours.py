"""A contestant: `alignkit fit` as users run it. Its steps include the Trainer, the loader and the guards."""

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from bare import Pacer
from torch import nn
from turns import Turns

from alignkit import callbacks
from alignkit.cli import main
from alignkit.module import AlignModule


class Stopwatch:
    """CPU seconds inside of some functions, but not of what those are told to call."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def since(self) -> float:
        """As many as since it was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def call(*arguments: Any, **named: Any) -> Any:
            self._seconds -= time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self._seconds += time.process_time()

        return call

    def timed_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """An optimizer's step, timed without the forward and backward pass that it calls first."""

        def call(optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Any:
            loss = closure()
            return self.timed(step)(optimizer, lambda: loss)

        return call


def watched() -> Stopwatch:
    """Times what a loop without a Trainer would call, too."""
    watch = Stopwatch()
    AlignModule.training_step = watch.timed(AlignModule.training_step)  # type: ignore[method-assign]
    torch.Tensor.backward = watch.timed(torch.Tensor.backward)  # type: ignore[method-assign]
    torch.optim.AdamW.step = watch.timed_step(torch.optim.AdamW.step)  # type: ignore[method-assign]
    nn.utils.get_total_norm = watch.timed(nn.utils.get_total_norm)
    nn.utils.clip_grads_with_norm_ = watch.timed(nn.utils.clip_grads_with_norm_)
    return watch


def pace(turns: Pacer, failed: Callable[[BaseException], None] = lambda error: None) -> None:
    """Has every run of this process ask before each micro-step.

    Args:
        turns: who is asked.
        failed: told of an error before the run saves anything.
    """
    begin = callbacks.Throughput.on_train_batch_start

    def paced(
        self: callbacks.Throughput, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """From here to here is a step, with all that comes around it."""
        assert isinstance(module, AlignModule)
        turns.next(module.seen.get("loss", 0.0), module.policy)
        begin(self, trainer, module, batch, batch_idx)

    def raised(
        self: callbacks.Throughput, trainer: pl.Trainer, module: pl.LightningModule, error: BaseException
    ) -> None:
        failed(error)

    callbacks.Throughput.on_train_batch_start = paced  # type: ignore[method-assign]
    callbacks.Throughput.on_exception = raised  # type: ignore[method-assign]


if __name__ == "__main__":
    pace(Turns(watched().since))
    sys.exit(main(sys.argv[1:]))
