"""Guards in whole runs of the toy, with faults at chosen steps. Steps are counted from 0 here."""

import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

from alignkit import Batch, Weights
from alignkit.averages import Average
from alignkit.callbacks import EMA
from alignkit.checkpoints import CheckpointFiles, UnsavedError, read
from alignkit.data import AlignData
from alignkit.guards import Guards, StoppedError
from alignkit.guards.journal import FILE
from alignkit.module import AlignModule
from alignkit.testing.toys import ToyBackbone, ToyPairs, toy_batch
from alignkit_classics.reference_free import SFT
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise
from tests.unit.test_checkpoint_values import assert_same as assert_same_values

STEPS, CLIP, DECAY, WARMUP = 6, 0.05, 0.9, 3
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "fused AdamW": partial(AdamW, lr=1e-2, fused=True),
    "AdamW": partial(AdamW, lr=1e-2, fused=False),
    "fused SGD": partial(SGD, lr=1e-2, momentum=0.9, fused=True),
}


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",
        ".*does not have many workers",
        ".*have no `val_dataloader`",
        ".*in eval mode at the start",
    )
]


@contextmanager
def said() -> Iterator[list[str]]:
    """The warnings within a ``with`` block."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        texts += [str(warning.message) for warning in caught if str(warning.message).startswith("step ")]


def batches(count: int, *, nan: int | None = None) -> list[Batch]:
    """Two pairs each, of other noise; one picture of one of them may be no numbers."""
    made = [toy_batch(2, visit=visit) for visit in range(count)]
    if nan is not None:
        assert made[nan].image_KBCHW is not None
        made[nan].image_KBCHW[0, 1, 0, 3, 3] = torch.nan
    return made


def module_of(optimizer: Callable[..., Optimizer], warmup: int = WARMUP) -> AlignModule:
    parts = (DiffusionDPO(beta=200.0), SharedNoise(), ToyBackbone())
    return AlignModule(*parts, optimizer, warmup_steps=warmup)


class Spoilt(pl.Callback):
    """Makes the loss or the gradient of one batch no number.

    Args:
        what: loss or gradient.
        at: which batch, from 0.
    """

    def __init__(self, what: str, at: int) -> None:
        self.what, self.at = what, at

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if self.what == "loss" and batch_idx == self.at:
            module._weigh = lambda *_: Weights(torch.tensor([1.0, torch.nan]))
        else:
            module.__dict__.pop("_weigh", None)

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        if self.what == "gradient" and trainer.fit_loop.total_batch_idx == self.at:
            module.policy.out.weight.grad[0, 0, 1, 1] = torch.inf


class Left(NamedTuple):
    """What a run leaves."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]


def trainer_of(folder: Path, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": CLIP,
        "log_every_n_steps": STEPS,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=callbacks, **{**given, **options})


def loader(given: list[Batch]) -> DataLoader[Batch]:
    return DataLoader(given, batch_size=None)  # type: ignore[arg-type]


def trained(
    folder: Path,
    given: list[Batch],
    optimizer: Callable[..., Optimizer],
    callbacks: list[pl.Callback],
    **options: Any,
) -> tuple[AlignModule, pl.Trainer, Left]:
    module, ema = module_of(optimizer), EMA(DECAY)
    more = [options.pop("more")] if "more" in options else []
    trainer = trainer_of(folder, [*callbacks, ema, *more], **options)
    kept: list[Left] = []
    note = pl.callbacks.LambdaCallback(  # before the run ends with its average
        on_train_end=lambda trainer, module: kept.append(
            Left(
                {name: weight.detach().clone() for name, weight in module.policy.named_parameters()},
                dict(ema._average.weights),
                trainer.optimizers[0].state_dict(),
            )
        )
    )
    trainer.callbacks.append(note)  # type: ignore[attr-defined]
    trainer.fit(module, loader(given))
    return module, trainer, kept[0]


def by_hand(
    given: list[Batch],
    optimizer: Callable[..., Optimizer],
    skip: set[int],
    accumulate: int = 1,
    ranks: int = 1,
    halved: int | None = None,
    back: tuple[int, int] | None = None,
) -> Left:
    """A loop without Lightning and guards; of some steps, nothing is done with the gradient.

    With several ranks, batches of a step stand side by side, and their gradients are averaged. After the step
    ``halved`` the learning rate is halved. After the first step of ``back`` all is as after the second.
    """
    module = module_of(optimizer)
    module.configure_model()
    module._report = Mock()  # type: ignore[method-assign]
    policy = module.policy
    assert policy is not None
    steps = optimizer(list(policy.parameters()))
    rate = steps.param_groups[0]["lr"]
    average = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    updates = 0
    together = accumulate * ranks
    kept: dict[int, Any] = {}
    for step in range(len(given) // together):
        steps.zero_grad()
        for batch in given[step * together : (step + 1) * together]:
            (module.training_step(batch, 0) / accumulate / ranks).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        factor = 0.5 if halved is not None and step > halved else 1
        steps.param_groups[0]["lr"] = factor * rate * min(1, (step + 1) / WARMUP)
        if step in skip:
            continue
        steps.step()
        decay = min(DECAY, (1 + updates) / (10 + updates)) if updates else 0.0
        updates += 1
        for name, weight in policy.named_parameters():
            average[name].lerp_(weight.detach(), 1 - decay)
        kept[step] = deepcopy((policy.state_dict(), steps.state_dict(), average, updates))
        if back and step == back[0]:
            weights_then, steps_then, average, updates = kept[back[1]]
            policy.load_state_dict(weights_then)
            steps.load_state_dict(steps_then)
    weights = {name: weight.detach() for name, weight in policy.named_parameters()}
    return Left(weights, average, steps.state_dict())


def assert_same(ours: Left, theirs: Left) -> None:
    for name, weight in theirs.weights.items():
        assert torch.equal(ours.weights[name], weight), name
        assert torch.equal(ours.average[name], theirs.average[name]), name
    state, expected = ours.optimizer["state"], theirs.optimizer["state"]
    assert state.keys() == expected.keys()
    for number, values in expected.items():
        for name, value in values.items():
            assert torch.equal(state[number][name], value), name


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("what", ["latent", "loss", "gradient"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_step_that_is_not_finite_is_left_out_as_by_hand(
    tmp_path: Path, what: str, step: int, optimizer: Callable[..., Optimizer], accumulate: int
) -> None:
    """Weights, average and the optimizer's state, as if nothing had been done with its gradient."""
    at = (step + 1) * accumulate - 1  # the last micro-batch of the step
    given = batches(STEPS * accumulate, nan=at if what == "latent" else None)
    with said() as texts:
        module, _, left = trained(
            tmp_path,
            given,
            optimizer,
            [Spoilt(what, at), Guards()],
            accumulate_grad_batches=accumulate,
        )
    assert_same(left, by_hand(given, optimizer, {step}, accumulate))
    (text,) = texts
    assert re.match(rf"step {step + 1}: .*: not finite; its update was left out; samples 1000, 1001", text)
    assert module.outcome["guards"]["skipped_steps"] == 1
    (line,) = written(tmp_path)
    assert (line["step"], line["what"], line["skipped"]) == (step + 1, "not finite", True)
    assert [batch["ids"] for batch in line["samples"]] == [[1000, 1001]] * accumulate
    assert line["samples"][0]["prompts"] == ["a red apple", "a green pear"]
    spoilt = [batch["finite"] for batch in line["samples"]]
    assert spoilt == [True] * (accumulate - 1) + [what == "gradient"]


def test_without_guards_the_same_fault_spoils_all_weights(tmp_path: Path) -> None:
    """So that the tests above cannot pass by themselves."""
    off = Guards(nonfinite="ignore", spikes="ignore", displacement="ignore")
    _, _, left = trained(tmp_path, batches(STEPS, nan=3), OPTIMIZERS["fused AdamW"], [off])
    assert not all(weight.isfinite().all() for weight in left.weights.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, CLIP])
def test_guards_change_nothing_while_all_is_well(
    tmp_path: Path, optimizer: Callable[..., Optimizer], clip: float | None
) -> None:
    off = Guards(nonfinite="ignore", spikes="ignore", displacement="ignore")
    runs = [
        trained(tmp_path, batches(STEPS), optimizer, [guards], gradient_clip_val=clip)[2]
        for guards in (off, Guards(spikes="skip"))
    ]
    assert_same(*runs)
    assert not (tmp_path / FILE).exists()


def test_after_ten_steps_in_a_row_the_run_stops_and_says_what_to_try(tmp_path: Path) -> None:
    given = batches(14)
    for batch in given[2:]:
        assert batch.image_KBCHW is not None
        batch.image_KBCHW[0, 0] = torch.nan
    with (
        said() as texts,
        pytest.raises(StoppedError, match=r"the updates of 10 steps in a row, up to step 12, were left out"),
    ):
        trained(tmp_path, given, OPTIMIZERS["fused AdamW"], [Guards()], max_steps=14, log_every_n_steps=4)
    # read at 4, 8 and 12
    assert [text.count("step ") for text in texts] == [2, 3, 3]
    assert "\nand 1 more steps\n" in texts[1]
    assert [line["step"] for line in written(tmp_path)] == list(range(3, 13))


def test_a_good_step_between_bad_ones_lets_the_run_go_on(tmp_path: Path) -> None:
    given = batches(STEPS)
    for batch in (*given[:2], *given[3:5]):
        assert batch.image_KBCHW is not None
        batch.image_KBCHW[0, 0] = torch.nan
    with said() as texts:
        trained(tmp_path, given, OPTIMIZERS["AdamW"], [Guards(max_skipped=3)], log_every_n_steps=1)
    assert len(texts) == 4


SYNCS = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "nonzero")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the guards and the averages do that would wait for a device."""
    seen: list[str] = []

    def counting(name: str) -> Any:
        original = getattr(Tensor, name)

        def counted(self: Tensor, *arguments: Any, **options: Any) -> Any:
            frame: Any = sys._getframe(1)
            while frame is not None:
                path = frame.f_code.co_filename
                if "alignkit/guards" in path or path.endswith(("alignkit/averages.py", "clip_grad.py")):
                    seen.append(name)
                    break
                frame = frame.f_back
            return original(self, *arguments, **options)

        return counted

    for name in SYNCS:
        monkeypatch.setattr(Tensor, name, counting(name))
    return seen


def test_a_step_that_logs_nothing_waits_for_nothing_if_its_optimizer_is_fused(
    tmp_path: Path, waits: list[str]
) -> None:
    counts: dict[str, list[int]] = {}
    for name in ("fused AdamW", "AdamW"):
        waits.clear()
        counts[name] = []
        count = pl.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, name=name: counts[name].append(len(waits))
        )
        trained(tmp_path, batches(STEPS), OPTIMIZERS[name], [Guards(spikes="skip"), count])
    # the last step is read
    assert counts["fused AdamW"][:-1] == [0] * (STEPS - 1)
    assert counts["fused AdamW"][-1] > 0
    assert counts["AdamW"][:-1] == list(range(1, STEPS))


def test_the_norm_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Mock(side_effect=nn.utils.get_total_norm)
    monkeypatch.setattr(nn.utils, "get_total_norm", counted)
    monkeypatch.setattr(nn.utils.clip_grad, "_get_total_norm", counted)
    trained(tmp_path, batches(STEPS), OPTIMIZERS["AdamW"], [Guards()])
    assert counted.call_count == STEPS


class Figures(pl.Callback):
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.values.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def test_norm_and_counts_are_logged(tmp_path: Path) -> None:
    """The norm before clipping, of the plain loop's first gradient."""
    module = module_of(OPTIMIZERS["AdamW"])
    module.configure_model()
    module._report = Mock()  # type: ignore[method-assign]
    given = batches(STEPS, nan=2)
    module.training_step(given[0], 0).backward()
    assert module.policy is not None
    squares = sum(weight.grad.double().square().sum().item() for weight in module.policy.parameters())  # type: ignore[union-attr, misc]
    figures = Figures()
    with said():
        trained(tmp_path, given, OPTIMIZERS["AdamW"], [Guards(), figures], log_every_n_steps=1)
    assert figures.values[0]["guards/grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert [value["guards/skipped"] for value in figures.values] == [0, 0, 1, 1, 1, 1]
    assert Average(0.5).updates.item() == 0


class Fallen(pl.Callback):
    """Says of some steps that both errors are four times the reference's.

    Args:
        steps: which, from 0.
    """

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Tensor) -> None:
        far = 3.0 if trainer.global_step in self.steps else 0.0
        for name in ("winner", "loser"):
            module.seen[f"{name}_mse_change"] = far * module.seen[f"ref_{name}_mse"]


def displaced(
    folder: Path, action: Any, steps: range, first: Sequence[pl.Callback] = (), **options: Any
) -> tuple[list[str], AlignModule, Left]:
    """A run of 8 steps. With a window of 2 the averages are 1.5, 2.25, 2.6 ... reference's errors."""
    guards = Guards(displacement=action, displacement_window=2, max_actions=1)
    with said() as texts:
        module, _, left = trained(
            folder,
            batches(8),
            OPTIMIZERS["fused AdamW"],
            [*first, Fallen(steps), guards],
            max_steps=8,
            log_every_n_steps=1,
            **options,
        )
    return texts, module, left


def test_displacement_is_told_once_by_default(tmp_path: Path) -> None:
    """Above twice the error from the second bad step on, for two steps from the third on."""
    texts, module, left = displaced(tmp_path, "warn", range(3, 8))
    (text,) = texts
    assert re.match(
        r"step 6: for 2 steps the errors of winner and loser have both been more than 2 times", text
    )
    assert module.outcome["guards"]["displacement_warn"] == 1
    assert_same(left, by_hand(batches(8), OPTIMIZERS["fused AdamW"], set()))


def test_displacement_halves_the_learning_rate(tmp_path: Path) -> None:
    texts, module, left = displaced(tmp_path, "lower_lr", range(3, 6))
    (text,) = texts
    assert text.endswith("the learning rate is halved, for the first time")
    assert module.lr_scale == 0.5
    assert_same(left, by_hand(batches(8), OPTIMIZERS["fused AdamW"], set(), halved=5))


def saving(folder: Path, every: int = 3) -> dict[str, Any]:
    """Options of a run that saves after every so many steps."""
    save = pl.callbacks.ModelCheckpoint(folder / "saved", every_n_train_steps=every, save_top_k=-1)
    return {"enable_checkpointing": True, "more": save, "plugins": [CheckpointFiles()]}


class Early(pl.Callback):
    """Saves after the third step, before other callbacks have seen it."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "saved", "epoch=0-step=3.ckpt"))


@pytest.mark.parametrize("early", [False, True])
def test_displacement_rolls_back_to_before_it_began_and_the_data_goes_on(tmp_path: Path, early: bool) -> None:
    """The third bad step, 6, raises the alarm of step 5; what was saved after step 3 is older.

    Saved early, it holds the average of before step 3, and the weights of after it.
    """
    first: list[pl.Callback] = [Early()] if early else []
    options = saving(tmp_path, every=99 if early else 3)
    texts, _, left = displaced(tmp_path, "roll_back", range(3, 6), first=first, **options)
    (text,) = texts
    assert "ROLLED BACK to epoch=0-step=3.ckpt, with half the learning rate, for the first time" in text
    expected = by_hand(batches(8), OPTIMIZERS["fused AdamW"], set(), halved=5, back=(5, 2))
    assert_same(left, expected)


def test_a_run_that_cannot_be_rolled_back_stops(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"There is no good checkpoint of before step 1 to roll back to"):
        displaced(tmp_path, "roll_back", range(8), **saving(tmp_path))


def test_a_run_that_was_rolled_back_often_enough_stops(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"step 8: .*, though the run was rolled back 1 times"):
        displaced(tmp_path, "roll_back", range(3, 8), **saving(tmp_path))


def test_displacement_stops_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"step 6: .*; the run stops here, as guards\.displacement asks"):
        displaced(tmp_path, "stop", range(3, 8))


def test_roll_back_needs_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"guards\.displacement: roll_back needs checkpoints"):
        displaced(tmp_path, "roll_back", range(1))


def test_an_objective_without_pairs_has_no_displacement_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = AlignModule(SFT(), SharedNoise(), ToyBackbone(), OPTIMIZERS["AdamW"])
    trainer_of(tmp_path, [Guards(displacement="stop", displacement_window=1)]).fit(module, loader(batches(3)))
    assert caplog.text.count("guards.displacement: stop has nothing to look at, since SFT reads no pair") == 1
    assert module.outcome["guards"] == {"skipped_steps": 0, "spikes": 0}


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """What was saved before stays as it was, byte for byte."""
    kept: list[bytes] = []
    path = tmp_path / "saved" / "epoch=0-step=3.ckpt"

    def spoil(trainer: pl.Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == 4:
            kept.append(path.read_bytes())
            module.policy.out.bias.data[1] = torch.inf

    spoiler = pl.callbacks.LambdaCallback(on_train_batch_end=spoil)
    with (
        said(),
        pytest.raises(
            UnsavedError, match=r"after step 6 weights are not finite, such as out\.bias: nothing is"
        ),
    ):
        trained(
            tmp_path, batches(8), OPTIMIZERS["AdamW"], [Guards(), spoiler], max_steps=8, **saving(tmp_path)
        )
    assert [path.read_bytes()] == kept
    assert list(path.parent.iterdir()) == [path]
    assert all(weight.isfinite().all() for weight in read(path)["state_dict"].values())


def in_two(folder: Path, guards: Callable[[], list[pl.Callback]], steps: int, first: int) -> list[Any]:
    """What a run in one go, and one that goes on from a checkpoint, end with, as they save it."""

    def run(last: int, **options: Any) -> Any:
        data = AlignData(ToyPairs(40), batch_size=4, resolution=16)
        module = module_of(OPTIMIZERS["fused AdamW"])
        trainer = trainer_of(
            folder, guards(), max_steps=last, plugins=[CheckpointFiles()], log_every_n_steps=1
        )
        with said():
            trainer.fit(module, datamodule=data, **options)
        trainer.save_checkpoint(folder / f"{last}.ckpt")
        state = read(folder / f"{last}.ckpt")
        return deepcopy((state["state_dict"], state["optimizer_states"], state["callbacks"]["Guards"]))

    straight = run(steps)
    run(first)
    return [straight, run(steps, ckpt_path=folder / f"{first}.ckpt")]


def test_a_run_that_goes_on_skips_the_same_spikes(tmp_path: Path) -> None:
    """One standard deviation over 6 steps: many are left out, and one too many or too few would show."""
    straight, resumed = in_two(
        tmp_path, lambda: [Guards(spikes="skip", spike_sigmas=1.0, spike_window=6)], 20, 11
    )
    assert_same_values(resumed, straight)
    assert 0 < straight[2]["totals"][0] < 10


@pytest.mark.parametrize("first", [5, 6, 7])
def test_a_run_that_goes_on_has_the_same_learning_rate(tmp_path: Path, first: int) -> None:
    """Halved after step 6."""
    straight, resumed = in_two(
        tmp_path,
        lambda: [Fallen(range(3, 6)), Guards(displacement="lower_lr", displacement_window=2)],
        8,
        first,
    )
    assert_same_values(resumed, straight)
    assert straight[2]["lr_scale"] == 0.5
    assert straight[1][0]["param_groups"][0]["lr"] == 0.5e-2


class Keep(pl.Callback):
    """Writes down what each process ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, *_: object, **__: object) -> None:
        torch.set_num_threads(1)  # a forked process has none of its parent's threads

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        torch.save(module.policy.state_dict(), self.folder / f"{trainer.global_rank}.pt")


class Part(pl.LightningDataModule):
    """Every second batch is one process's."""

    def __init__(self, given: list[Batch]) -> None:
        super().__init__()
        self.given = given

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        return loader(self.given[self.trainer.global_rank :: self.trainer.world_size])


def test_a_run_of_the_command_line_stops_with_words_and_keeps_what_was_good(
    alignkit: Callable[..., tuple[int, str, str]], pipeline: Path, tmp_path: Path
) -> None:
    """A learning rate of 1e30 makes weights that give no numbers, from the second step on."""
    path = tmp_path / "tiny.yaml"
    path.write_text(f"""
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}}}
optimizer: {{name: AdamW, lr: 1.0e+30}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  batch_size: 8
  resolution: 16
guards: {{max_skipped: 3}}
trainer: {{accelerator: cpu, devices: 1, max_steps: 9, log_every_n_steps: 1, enable_progress_bar: false}}
""")
    with said() as texts:
        code, _, err = alignkit("fit", "--config", str(path), "--run", "run")
    assert code == 2, err
    first, second, third, *_ = err[err.index("alignkit: error: ") :].splitlines()
    assert first.endswith("the updates of 3 steps in a row, up to step 4, were left out, so the run stops")
    assert second.startswith(
        "step 4: loss nan, gradient norm nan: not finite; its update was left out; samples 1"
    )
    assert third == "Prompts and all samples stand in run/guards.jsonl"
    assert "Traceback" not in err
    assert [text[:7] for text in texts] == ["step 2:", "step 3:", "step 4:"]
    assert [len(line["samples"][0]["ids"]) for line in written(tmp_path / "run")] == [8, 8, 8]
    weights = read(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_all_processes_leave_out_what_one_has_spoilt(tmp_path: Path) -> None:
    """Weights of both equal those of the loop by hand; samples of both are named, the second's is bad."""
    given = batches(2 * STEPS, nan=7)
    trainer = trainer_of(
        tmp_path,
        [Guards(), Keep(tmp_path)],
        devices=2,
        strategy="ddp_fork",
        use_distributed_sampler=False,
    )
    with said():
        trainer.fit(module_of(OPTIMIZERS["fused AdamW"]), datamodule=Part(given))
    expected = by_hand(given, OPTIMIZERS["fused AdamW"], {3}, ranks=2).weights
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    (line,) = written(tmp_path)
    assert line["step"] == 4
    assert [(batch["rank"], batch["finite"]) for batch in line["samples"]] == [(0, True), (1, False)]
