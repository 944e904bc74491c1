"""How the Trainer ends when it is told to: on all processes at the same place, from which it can go on."""

import shlex
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from alignkit import checkpoints, slurm, trust
from alignkit.callbacks import Checkpoints
from alignkit.distributed import is_joined
from alignkit.signals import PATIENCE, Handler, Stopped, current

Value = TypeVar("Value")
STEP, BATCH = "saving after this micro-step", "ending after this batch"
FILE = "ending after this file of pictures"
CONFIG = "config.yaml"
# more batches than there are
UNENDING = 2**62


class Agreement:
    """Numbers that all processes know together: on the host, in a group of its own, so that no device waits.

    To be made by all of them; in a single process it costs nothing.
    """

    def __init__(self) -> None:
        self._group = distributed.new_group(backend="gloo") if is_joined() else None

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self._group is None:
            return number
        largest = torch.tensor(number)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, self._group)
        return int(largest)


class Handling:
    """Stands in the Trainer in place of its own handling of signals, which knows SIGTERM on rank 0 alone."""

    def __init__(self, trainer: pl.Trainer, stopping: "Stopping") -> None:
        self._trainer, self._stopping = trainer, stopping

    @property
    def received_sigterm(self) -> bool:
        """Whether training ends here: asked after every micro-step, when what was due with it is done."""
        # processes may have different numbers of validation batches; the callback knows
        return self._stopping.number > 0 and not self._trainer.validating

    def register_signal_handlers(self) -> None:
        """Leaves them as they are."""

    def teardown(self) -> None:
        """Leaves them as they are."""


class Stopping(pl.Callback):
    """Ends a trainer when a signal came to any of its processes; see ``attach``.

    - In training, after the micro-step, once: ``Checkpoints`` saves it if it is not saved as it is.
    - In validation after the batch; what is saved has trained as far, and validates anew when it goes on.
    - In predicting, after the batch; in ``paced`` work, after the value at hand.
    - Before training, and between these, where the next of them begins.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handler = current() or Handler()
        self._agreement: Agreement | None = None
        self._requeue: signal.Signals | None = None
        self._left, self._is_trained, self._is_predicting = 0, False, False

    def attach(self, trainer: pl.Trainer) -> None:
        """Makes a trainer end by it, and not as it would on its own."""
        trainer.callbacks = [*trainer.callbacks, self]  # type: ignore[attr-defined]
        trainer._signal_connector = Handling(trainer, self)  # type: ignore[assignment]
        # it would wait for the device before every micro-step to learn what rank 0 knows
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        launcher = trainer.strategy.launcher
        self._handler.others = lambda: getattr(launcher, "procs", ())
        self._handler.is_waiting = trainer.world_size > 1 and launcher is None
        self._handler.is_quiet = getattr(rank_zero_only, "rank", 0) != 0
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            assert environment.requeue_signal is not None
            self._requeue = environment.requeue_signal
            self._handler.handle(self._requeue)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Becomes the last callback: the others are done with a batch when it ends."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        self._agreement = self._agreement or Agreement()
        self._handler.is_waiting |= trainer.world_size > 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_trained = True
        self._handler.is_waiting, self._handler.promise = True, STEP
        self._end()

    def on_train_batch_end(self, *_: Any) -> None:
        self._is_agreed()  # the Trainer asks next

    def on_train_epoch_end(self, *_: Any) -> None:
        self._is_agreed()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        # no process asks after a batch that another one has not: that one is where they must not wait for it
        self._left = -self._most(-_counted(trainer.num_val_batches))
        self._handler.is_waiting, self._handler.promise = True, BATCH
        self._end()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._left -= 1
        if self._left >= 0 and not trainer.sanity_checking:
            self._end()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._handler.promise = STEP
        if self._is_agreed() and trainer.state.fn != TrainerFn.FITTING:
            raise Stopped(self.number)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._handler.is_waiting, self._handler.promise = True, BATCH
        self._left, self._is_predicting = self._most(_counted(trainer.num_predict_batches)), True
        self._end()

    def on_predict_batch_end(self, *_: Any) -> None:
        self._left -= 1
        self._end()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self._left > 0:  # other processes have more batches, and ask after each
            self.on_predict_batch_end()
        self._handler.is_waiting = False

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes part where this process had nothing to predict, and was not asked before."""
        if stage == "predict" and not self._is_predicting:
            self.on_predict_start(trainer, pl_module)
            self.on_predict_end(trainer, pl_module)
        self._is_predicting = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Notes where the run is saved, and has a job that is to be requeued begin anew."""
        if not isinstance(exception, Stopped | SIGTERMException) or not trainer.is_global_zero:
            return
        if self._is_trained or trainer.state.fn == TrainerFn.FITTING:
            exception.add_note(how_to_go_on(trainer))
        if self._handler.number == self._requeue:
            exception.add_note(slurm.requeue())

    def paced(self, values: Iterable[Value], count: int) -> Iterator[Value]:
        """As the function of this name."""
        promise, self._handler.promise = self._handler.promise, FILE
        several = iter(values)
        for _ in range(self._most(count)):
            yield from islice(several, 1)
            self._end()
        yield from several
        self._handler.promise = promise

    def _most(self, number: int) -> int:
        assert self._agreement is not None
        return self._agreement.most(number)

    def _is_agreed(self) -> bool:
        """Whether any process was told; to be asked by all of them."""
        if not self.number:
            self.number = self._most(self._handler.number or 0)
            if self.number:
                self._handler.told(self.number)
                self._handler.number, self._handler.patience = self.number, PATIENCE
                self._take_over()
        return self.number > 0

    def _take_over(self) -> None:
        """Keeps the Trainer from killing this process where another one that it started ends first."""
        started = self._handler.others()
        processes = list(started)
        self._handler.others = lambda: processes
        if isinstance(started, list):
            started.clear()

    def _end(self) -> None:
        if self._is_agreed():
            raise Stopped(self.number)


def paced(trainer: pl.Trainer, values: Iterable[Value], count: int) -> Iterator[Value]:
    """Yields the values of each process, and ends all processes after those at hand when one was told to.

    Args:
        trainer: whose processes.
        values: of this process.
        count: how many those are.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for stopping in (callback for callback in callbacks if isinstance(callback, Stopping)):
        return stopping.paced(values, count)
    return iter(values)


def how_to_go_on(trainer: pl.Trainer) -> str:
    """Where a run is saved, and the command that goes on with it."""
    run = Path(trainer.default_root_dir)
    own = [checkpoint for checkpoint in trainer.checkpoint_callbacks if isinstance(checkpoint, Checkpoints)]
    if not own:
        return "nothing is saved: the run was told to save no checkpoints"
    last = Path(own[0].last_model_path)
    if not checkpoints.is_there(last):
        return "nothing was trained, and nothing saved"
    where = f"saved in {last.resolve()}"
    if own[0].has_news(trainer):
        where = f"it could not be saved as it is, but what was saved before stands in {last.resolve()}"
    command = ["alignkit", "fit", "--config", str(run / CONFIG), "--run", str(run), "--ckpt_path", "last"]
    command += trust.options()
    return f"{where}; go on with\n{shlex.join(command)}"


def _counted(batches: Sequence[int | float]) -> int:
    return int(min(sum(batches), UNENDING))
