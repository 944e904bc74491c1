"""Runs that go on from a checkpoint, against runs that never stopped: every weight, every pair."""

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit import Batch, PairRecord, PairSource, Sampler, Weighting
from alignkit.callbacks import EMA
from alignkit.checkpoints import CheckpointFiles
from alignkit.data import AlignData
from alignkit.module import AlignModule
from alignkit.resuming import Change, Resuming, counted, differences, refuse
from alignkit.testing import ToyBackbone, ToyPairs
from alignkit.training import quiet_libraries
from alignkit_adaptive_dpo.weighting import MinorityAware
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_spin_diffusion.sampler import SelfPlay
from alignkit_standard.sampler import SharedNoise

# 32 pairs are left without the ties: eight batches of four, and with three a step, six of them in an epoch
PAIRS = 40


class Noisy(ToyBackbone):
    """Draws from torch's own generator in every prediction, as dropout does."""

    def predict(self, network: nn.Module, x_KBCHW: Tensor, *args: Any) -> Tensor:
        noise_BCHW = 0.01 * torch.randn(x_KBCHW.shape[1:])
        return super().predict(network, x_KBCHW + noise_BCHW, *args)


class Shapes(ToyPairs):
    """Every third pair is wide."""

    def __getitem__(self, index: int) -> PairRecord:
        record, buffer = super().__getitem__(index), io.BytesIO()
        if index % 3:
            return record
        Image.open(io.BytesIO(record.image_0)).resize((32, 8)).save(buffer, "PNG")
        return record._replace(image_0=buffer.getvalue(), image_1=buffer.getvalue())


class Log(pl.Callback):
    """Writes down which pairs are trained on, and saves, or breaks off, where it is told.

    Args:
        save: saves after every batch, under its number.
        break_at: breaks off in a hook: its name, and how many batches were done by then.
    """

    def __init__(self, *, save: bool = False, break_at: tuple[str, int] = ("", 0)) -> None:
        super().__init__()
        self.save, self.break_at = save, break_at
        self.seen: list[list[tuple[int, int]]] = []
        self.validated: list[int] = []
        self.counted: list[int] = []
        self.epochs: list[tuple[int, int]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.seen.append(list(zip(batch.id_B.tolist(), batch.visit_B.tolist(), strict=True)))
        self.counted.append(trainer.fit_loop.epoch_loop._batches_that_stepped)
        if self.save:
            trainer.save_checkpoint(f"{len(self.seen)}.ckpt")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated.append(trainer.fit_loop.total_batch_idx)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self._break("validation", trainer)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._break("backward", trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._break("epoch start", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append((trainer.current_epoch, len(self.seen)))
        self._break("epoch end", trainer)

    def _break(self, place: str, trainer: pl.Trainer) -> None:
        if self.break_at == (place, len(self.seen)):
            raise KeyboardInterrupt

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint("broken.ckpt")


class Run(NamedTuple):
    """What a run ends with."""

    module: AlignModule
    trainer: pl.Trainer
    log: Log
    ema: EMA

    def state(self) -> dict[str, Tensor]:
        """All that must be the same, bit for bit."""
        assert self.module.policy is not None
        found = {f"weight {name}": weight.detach() for name, weight in self.module.policy.named_parameters()}
        for number, values in self.trainer.optimizers[0].state_dict()["state"].items():
            found |= {f"optimizer {number} {name}": value for name, value in values.items()}
        found |= {f"average {name}": value for name, value in self.kept.items()}
        snapshots = self.module._snapshots
        for number, average in enumerate(snapshots.averages if snapshots else ()):
            found |= {f"snapshot {number} {name}": value for name, value in average.weights.items()}
        return found

    @property
    def kept(self) -> dict[str, Tensor]:
        return dict(self.ema._average.weights)


def run(
    ckpt_path: str | None = None,
    *,
    steps: int = 5,
    accumulated: int = 3,
    batch_size: int = 4,
    log: Log | None = None,
    source: type[PairSource] = ToyPairs,
    sampler: Callable[[], Sampler] = SharedNoise,
    weighting: Callable[[], Weighting] | None = None,
    allowed: Sequence[str] = (),
    data: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    log, ema = log or Log(), EMA(0.9)
    ema.on_fit_end = ema.on_train_start  # type: ignore[method-assign] # keeps raw weights and average
    torch.manual_seed(1 if ckpt_path is None else 2)
    module = AlignModule(
        DiffusionDPO(beta=200.0),
        sampler(),
        Noisy(),
        lambda weights: torch.optim.AdamW(weights, 1e-2),
        weighting() if weighting else None,
    )
    module.resuming = Resuming(allowed=allowed)
    module.objective.initial_loss = lambda: None  # type: ignore[method-assign] # noise: no equal start
    pairs = AlignData(
        source(PAIRS),  # type: ignore[call-arg]
        validation=ToyPairs(8),
        batch_size=batch_size,
        **{"resolution": 16, "seed": 5, **(data or {})},
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[log, ema],  # what it saves is saved before the average follows
        plugins=[CheckpointFiles()],
        accumulate_grad_batches=accumulated,
        **{"max_steps": steps, "val_check_interval": 2, "check_val_every_n_epoch": None, **options},
    )
    with contextlib.suppress(SystemExit):  # what becomes of an interrupt
        trainer.fit(module, pairs, ckpt_path=ckpt_path)
    return Run(module, trainer, log, ema)


def assert_same(first: Run, second: Run) -> None:
    ours, theirs = first.state(), second.state()
    assert ours.keys() == theirs.keys()
    assert ours
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet_libraries()
    warnings.filterwarnings("ignore", message="This DataLoader will create 2 worker processes")


@pytest.mark.parametrize(
    ("accumulated", "steps", "options"),
    [
        (3, 5, {}),
        (1, 9, {"weighting": MinorityAware}),
        (2, 3, {"data": {"num_workers": 1}}),
        (2, 4, {"batch_size": 8, "data": {"num_workers": 2}, "max_steps": -1, "max_epochs": 2}),
        (3, 3, {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "max_steps": -1, "max_epochs": 2}),
        (2, 7, {"source": Shapes, "data": {"bucket_step": 8}}),
        (
            2,
            6,
            {
                "sampler": lambda: SelfPlay(rounds=3, images_per_prompt=1, num_steps=2),
                "data": {"reads": "winner"},
            },
        ),
    ],
)
def test_goes_on_after_any_batch(accumulated: int, steps: int, options: dict[str, Any]) -> None:
    """In mid-accumulation, across the edges of epochs, with validations, with other random numbers before."""
    options = {"steps": steps, "accumulated": accumulated, **options}
    straight = run(log=Log(save=True), **options)
    batches = len(straight.log.seen)
    assert batches > 1
    for stop in range(1, batches + 1):
        resumed = run(f"{stop}.ckpt", **options)
        if stop == batches and resumed.module._snapshots:  # nobody asks for them any more
            resumed.module._snapshots.on_train_start(resumed.trainer, resumed.module)
        assert_same(straight, resumed)
        assert resumed.log.seen == straight.log.seen[stop:]
        assert resumed.log.counted == straight.log.counted[stop:]
        if stop < batches:  # a run that is over is not validated anew
            assert resumed.log.validated == [at for at in straight.log.validated if at + 1 >= stop]
            ends = [(epoch, at - stop) for epoch, at in straight.log.epochs if at >= stop]
            assert resumed.log.epochs == ends


@pytest.mark.parametrize(
    ("place", "batches"),
    [
        ("backward", 2),
        ("backward", 7),
        ("validation", 4),
        ("validation", 8),
        ("epoch end", 6),
        ("epoch start", 6),
    ],
)
def test_goes_on_where_it_was_broken_off(place: str, batches: int) -> None:
    """What was begun is done anew; a step that was broken off within accumulation, from its first batch."""
    straight = run()
    broken = run(log=Log(break_at=(place, batches)))
    assert len(broken.log.seen) == batches < len(straight.log.seen)
    resumed = run("broken.ckpt")
    assert_same(straight, resumed)
    edge = batches // 3 * 3 if place == "backward" else batches
    assert broken.log.seen[:edge] + resumed.log.seen == straight.log.seen
    if place == "validation":
        assert resumed.log.validated[0] == batches - 1


def test_another_split_goes_on_with_the_same_pairs() -> None:
    """12 pairs a step, two steps an epoch: stopped at edges of steps and of epochs, and within a step."""
    whole = run(log=Log(save=True))
    for batch_size, accumulated in ((12, 1), (2, 6)):
        split = {"batch_size": batch_size, "accumulated": accumulated}
        straight = run(**split)  # type: ignore[arg-type]
        for stop in (5, 6, 7, 12):
            resumed = run(f"{stop}.ckpt", **split, data={"num_workers": stop % 2})  # type: ignore[arg-type]
            edge = stop // 3 * 3
            assert pairs_of(resumed) == pairs_of(whole)[edge * 4 :]
            assert resumed.trainer.global_step == whole.trainer.global_step == 5
            assert straight.log.counted[-len(resumed.log.counted) :] == resumed.log.counted
            ends = [epoch for epoch, at in straight.log.epochs if at * batch_size >= stop * 4]
            assert [epoch for epoch, _ in resumed.log.epochs] == ends
            # sums are rounded otherwise where they are divided otherwise
            assert_close(resumed.state(), whole.state(), rtol=0, atol=1e-4)


def pairs_of(made: Run) -> list[tuple[int, int]]:
    return list(chain.from_iterable(made.log.seen))


def test_pairs_of_several_shapes_are_not_split_otherwise() -> None:
    """Batches of one shape come in another order, be there as many pairs in a step or not."""
    shapes: dict[str, Any] = {"source": Shapes, "data": {"bucket_step": 8}, "steps": 3}
    run(accumulated=2, log=Log(save=True), **shapes)
    with pytest.raises(ValueError, match=r"data\.batch_size: 4 -> 2\n.*accumulate_grad_batches: 2 -> 4"):
        run("2.ckpt", batch_size=2, accumulated=4, **shapes)
    allowed = ("data.batch_size", "trainer.accumulate_grad_batches")
    with pytest.raises(ValueError, match=r"with bucket_step, pairs come in another order where all devices"):
        run("2.ckpt", batch_size=2, accumulated=4, allowed=allowed, **shapes)


def test_other_numbers_of_pairs_in_a_step_begin_at_an_edge_of_both() -> None:
    """12 pairs a step; with 8, only the second edge is one of theirs, and the ends of epochs."""
    run(log=Log(save=True))
    with pytest.raises(ValueError, match=r"trainer\.accumulate_grad_batches: 3 -> 2\n"):
        run("3.ckpt", accumulated=2)
    allowed = ("trainer.accumulate_grad_batches",)
    with pytest.raises(ValueError, match="the checkpoint is 12 pairs into an epoch, no multiple of the 8"):
        run("4.ckpt", accumulated=2, allowed=allowed)
    resumed = run("8.ckpt", accumulated=2, allowed=allowed)
    assert resumed.trainer.global_step == 5
    assert [change["from"] for change in resumed.module.resuming.changes] == [3]


def test_only_callbacks_that_may_train_otherwise_count() -> None:
    ema = {"class_path": "alignkit.callbacks.EMA", "init_args": {"decay": 0.9}}
    names = ("lightning.pytorch.callbacks.LearningRateMonitor", "alignkit.callbacks.SampleGrid")
    config = {"trainer": {"callbacks": [ema, *({"class_path": name} for name in names), ema], "devices": 2}}
    assert counted(config) == {"trainer": {"callbacks": {"EMA": ema, "EMA-2": ema}}}
    assert counted({"trainer": {"callbacks": "alignkit.callbacks.Throughput"}}) == {
        "trainer": {"callbacks": {}}
    }


def test_parts_of_a_key_are_allowed_with_it_and_no_other_key() -> None:
    change = Change("data.train.path", "a", "b")
    assert all(change.is_allowed([key]) for key in ("data", "data.train", "data.train.path"))
    assert not any(change.is_allowed([key]) for key in ("data.tr", "train", "data.train.path.x", "dat"))


def test_many_differences_are_told_in_few_lines() -> None:
    before, now = {"data": {str(n): n for n in range(99)}}, {"data": {str(n): -n for n in range(99)}}
    changes = list(differences(before, now))
    assert changes[0] == Change("data.1", 1, -1)
    with pytest.raises(
        ValueError, match=r"^x.ckpt is of a run that differs from this one:\n  data.1: 1 -> -1; data"
    ) as told:
        refuse(changes, (), "x.ckpt")
    assert len(str(told.value).splitlines()) == 5
    with pytest.raises(ValueError, match=r"  reference: 0123456789ab -> none\n"):
        refuse([Change("reference", "0123456789abcdef" * 4, None)], ("data",), "x.ckpt")
