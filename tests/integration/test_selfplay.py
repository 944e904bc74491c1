"""Self-play through the command line: rounds, what is killed and resumed, two processes, adapters."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.testing import assert_close

from alignkit import Batch
from alignkit.checkpoints import read, write
from alignkit.module import AlignModule
from alignkit.resuming import Onlooker
from alignkit_emoji.pictures import FOLDER
from alignkit_spin_diffusion.sampler import SelfPlay
from tests.runs import environment, straight_run, written

Run = Callable[..., tuple[int, str, str]]

ROUNDS, STEPS = 3, 4
# 48 pairs are 6 batches: rounds end at steps 4, 8 and 12, where they are validated, and epochs at 6 and 12
CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: {{name: SelfPlay, rounds: 3, images_per_prompt: 2, num_steps: 2, batch_size: 2, chunk_size: 2}}
backbone: {{name: StableDiffusion, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 1.0e-4}}
model: {{warmup_steps: 2}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 20}}}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 0}}
samples: {{num_prompts: 0}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 12
  check_val_every_n_epoch: null
  val_check_interval: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
  - {{class_path: alignkit.callbacks.EMA, init_args: {{decay: 0.9}}}}
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {{filename: 'every-{{step}}', every_n_train_steps: 3, save_top_k: -1}}
"""


class Killed(Onlooker):
    """Ends the process as a machine that fails: after a step, or when a file is about to get its name."""

    def __init__(self, step: int = -1, file: str = "") -> None:
        self.step, self.file = step, file

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        replace = os.replace

        def killed(source: Any, target: Any) -> None:
            if self.file and str(target).endswith(self.file):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = killed  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> str:
    return written(tmp_path, CONFIG.format(pipeline=pipeline))


@pytest.fixture(scope="module")
def straight(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    return straight_run(tmp_path_factory.mktemp("straight"), CONFIG.format(pipeline=pipeline))


def run_apart(folder: Path, *options: str, threads: int) -> subprocess.CompletedProcess[str]:
    """Runs the command line in processes of its own; sums depend in their last bits on the threads."""
    return subprocess.run(
        [sys.executable, "-m", "alignkit.cli", "--trust", "tests", "fit", *options],
        cwd=folder,
        env=environment(OMP_NUM_THREADS=str(threads)),
        capture_output=True,
        text=True,
        timeout=600,
    )


def fit(alignkit: Run, *options: str) -> None:
    code, _, err = alignkit("fit", *options)
    assert code == 0, err


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "unet" / "diffusion_pytorch_model.safetensors")


def losers(run: Path, number: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What was generated in a round, by request."""
    found = {}
    for path in sorted((run / "rounds" / str(number)).glob("part-*")):
        with safe_open(path, "pt") as file:
            requests = json.loads(file.metadata()["requests"])
            for row, request in enumerate(requests):
                found[json.dumps(request)] = (file.get_tensor("mean")[row], file.get_tensor("std")[row])
    return found


def assert_same(first: Path, second: Path, tolerance: float = 0.0) -> None:
    """Weights and losers of two runs; exactly, where no tolerance is given."""
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)
    for number in range(ROUNDS):
        mine, others = losers(first, number), losers(second, number)
        assert len(mine) == 12  # six prompts, two images
        assert mine.keys() == others.keys()
        for request in mine:
            assert_close(mine[request], others[request], rtol=0, atol=tolerance)


class Seen(NamedTuple):
    """What a run was like before a backward pass."""

    step: int
    loss: float
    lr: float
    beta: float
    momenta: int
    reference_is_policy: bool
    reference_is_frozen: bool
    generator: str
    reference: str
    conditions_shared: bool
    read: int


class Watch(Onlooker):
    """Notes what a run is like, where a test can read it."""

    seen: ClassVar[list[Seen]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        assert pl_module.policy is not None
        self.seen.clear()
        self._text: Tensor | None = None
        self._hook = pl_module.policy.register_forward_pre_hook(self._asked, with_kwargs=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook.remove()

    def _asked(self, network: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._text = options["encoder_hidden_states"]

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        self._read = len(batch.image_KBCHW)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, AlignModule)
        assert pl_module.reference is not None
        assert self._text is not None
        sampler, optimizer = pl_module.sampler, trainer.optimizers[0]
        assert isinstance(sampler, SelfPlay)
        assert sampler.rounds.rollouts is not None
        with pl_module.reference.network() as network:
            pairs = list(zip(network.parameters(), pl_module.policy.parameters(), strict=True))  # type: ignore[union-attr]
        winner_BLD, loser_BLD = self._text.chunk(2)
        self.seen.append(
            Seen(
                trainer.global_step,
                float(loss.detach()),
                optimizer.param_groups[0]["lr"],
                pl_module.objective.beta,  # type: ignore[arg-type]
                len(optimizer.state),
                all(torch.equal(theirs, ours) for theirs, ours in pairs),
                not any(theirs.requires_grad or theirs.grad is not None for theirs, _ in pairs),
                sampler.rounds.rollouts.provenance.generator,
                pl_module.reference.fingerprint(),
                torch.equal(winner_BLD, loser_BLD),
                self._read,
            )
        )


def own(name: str, **arguments: object) -> tuple[str, ...]:
    """Options that add a callback of this file."""
    options = [f"--trainer.callbacks+=tests.integration.test_selfplay.{name}"]
    return (*options, *(f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()))


def test_every_round_begins_anew_against_the_policy_of_the_last(alignkit: Run, config: str) -> None:
    """B-T1, B-T9, B-T11, B-T13: at steps 0, 4 and 8 the policy is the reference and so the loss is log 2.

    Nothing is in the optimizer, the warm-up of two steps begins again, and losers are the reference's own.
    """
    factors = ("--sampler.lr_factors", "[1.0, 0.5, 0.25]", "--sampler.betas", "[200.0, 400.0, 800.0]")
    fit(alignkit, "--config", config, *factors, *own("Watch"))
    seen = Watch.seen
    assert [now.step for now in seen] == list(range(ROUNDS * STEPS))
    begins = [now.step % STEPS == 0 for now in seen]
    assert [now.reference_is_policy for now in seen] == begins
    assert [now.momenta == 0 for now in seen] == begins
    first, later = [[now.loss for now in seen if (now.step % STEPS == 0) == at] for at in (True, False)]
    assert first == pytest.approx([math.log(2)] * ROUNDS, rel=1e-7)
    assert math.log(2) not in later
    assert [now.lr for now in seen] == pytest.approx(
        [1e-4 * factor * part for factor in (1.0, 0.5, 0.25) for part in (0.5, 1, 1, 1)]
    )
    assert [now.beta for now in seen] == [200.0] * STEPS + [400.0] * STEPS + [800.0] * STEPS
    assert all(now.reference_is_frozen and now.conditions_shared for now in seen)
    assert {now.read for now in seen} == {1}  # the winner: the loser is not the data's
    assert [now.generator for now in seen] == [now.reference for now in seen]
    assert len({now.generator for now in seen}) == ROUNDS


def test_a_round_ends_with_the_average_and_leaves_its_opponent(straight: Path) -> None:
    """The next opponent is the average of the round's weights, as its last checkpoint has it."""
    for number in (1, 2):
        state = read(straight / f"checkpoints/round-{number}.ckpt")
        average = state["callbacks"]["EMA"]["average"]
        opponent = load_file(straight / f"rounds/{number}/opponent.safetensors")
        assert opponent.keys() == average.keys()
        assert all(torch.equal(opponent[name], average[name]) for name in average)
        last = {name.removeprefix("policy."): weight for name, weight in state["state_dict"].items()}
        assert not all(torch.equal(opponent[name], last[name]) for name in average)
        with safe_open(straight / f"rounds/{number}/part-00000.safetensors", "pt") as file:
            provenance = json.loads(file.metadata()["provenance"])
        assert (provenance["round"], provenance["sampler"], provenance["seed"]) == (number, "DDIM", 3)
    assert not (straight / "rounds/0/opponent.safetensors").exists()
    found = [json.dumps(losers(straight, number)[key][0].tolist()) for number in range(3)
             for key in losers(straight, number)]  # fmt: skip
    assert len(set(found)) == 3 * 12  # no two of any round are alike


@pytest.mark.parametrize(
    "number", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_resumed_before_or_within_a_generation_is_bit_equal(
    alignkit: Run, config: str, straight: Path, tmp_path: Path, number: int
) -> None:
    """What a killed process leaves: the checkpoint before the round, and some of its files."""
    killed = tmp_path / "killed"
    (killed / "checkpoints").mkdir(parents=True)
    shutil.copy(straight / f"checkpoints/round-{number}.ckpt", killed / "checkpoints/last.ckpt")
    shutil.copytree(straight / "rounds", killed / "rounds")
    for after in range(number + 1, ROUNDS):
        shutil.rmtree(killed / f"rounds/{after}")
    kept = killed / f"rounds/{number}/part-00001.safetensors"
    for chunk in (0, 2, 3):
        (killed / f"rounds/{number}/part-0000{chunk}.safetensors").unlink()
    written = kept.stat().st_mtime_ns
    last = str(killed / "checkpoints/last.ckpt")
    fit(alignkit, "--config", config, "--run", "killed", "--ckpt_path", last)
    assert_same(straight, killed)
    assert kept.stat().st_mtime_ns == written
    assert (killed / "checkpoints/last.ckpt").is_symlink()
    assert not list((killed / "checkpoints").glob("last-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "checkpoint"),
    [
        ({"file": "0/part-00002.safetensors"}, "round-0.ckpt"),
        ({"file": "1/opponent.safetensors"}, "round-1.ckpt"),
        ({"file": "2/part-00001.safetensors"}, "round-2.ckpt"),
        ({"step": 4}, "every-step=3.ckpt"),
        ({"step": 7}, "round-1.ckpt"),
        ({"step": 7}, "every-step=6.ckpt"),
        ({"step": 11}, "round-2.ckpt"),
    ],
)
def test_killed_and_resumed_is_bit_equal(
    alignkit: Run, config: str, straight: Path, tmp_path: Path, killed: dict[str, object], checkpoint: str
) -> None:
    """SIGKILL while a file is written, the opponent's or losers', and between two steps of a round."""
    options = ("--config", config, "--run", "killed", *own("Killed", **killed))
    done = run_apart(tmp_path, *options, threads=torch.get_num_threads())
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = tmp_path / "killed"
    assert len(list(run.glob("rounds/*/.*.partial"))) == ("file" in killed)
    if checkpoint.startswith("round"):
        assert (run / "checkpoints/last.ckpt").resolve().name == checkpoint
    fit(alignkit, "--config", config, "--run", "killed", "--ckpt_path", str(run / "checkpoints" / checkpoint))
    assert_same(straight, run)
    assert not list(run.glob("rounds/*/.*.partial"))


def test_validate_puts_the_checkpoints_opponent_in_its_place(
    alignkit: Run, config: str, straight: Path, tmp_path: Path
) -> None:
    """What training measured at the end of round 2, against its opponent, is measured again; and moved."""
    events = EventAccumulator(str(straight), size_guidance={"scalars": 0}).Reload()
    trained = {
        name: next(event.value for event in events.Scalars(f"val/{name}") if event.step == 7)
        for name in ("loss", "rewards/margins", "ref_winner_mse")
    }
    shutil.copytree(straight, tmp_path / "moved")
    code, _, err = alignkit("validate", "--config", config, "--ckpt_path", "moved/checkpoints/round-2.ckpt")
    assert code == 0, err
    checked = json.loads((tmp_path / "runs/tiny-validate/summary.json").read_text())["held_out"]
    assert {name: checked[name] for name in trained} == pytest.approx(trained, abs=2e-6)
    assert trained["rewards/margins"] != 0


def test_resumed_in_a_folder_of_its_own(alignkit: Run, config: str, straight: Path, tmp_path: Path) -> None:
    """The opponent is found beside the checkpoint; the round's losers are generated again."""
    found = str(straight / "checkpoints/every-step=9.ckpt")
    fit(alignkit, "--config", config, "--run", "on", "--ckpt_path", found)
    ours, theirs = weights(straight), weights(tmp_path / "on")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {path.name for path in (tmp_path / "on/rounds").iterdir()} == {"2"}
    assert (tmp_path / "on/rounds/2/opponent.safetensors").is_file()


@pytest.mark.slow
def test_adapters_play_against_a_frozen_copy(alignkit: Run, config: str, tmp_path: Path) -> None:
    """The opponent's file has the adapters alone; a resumed run is bit-equal."""
    lora = ("--backbone.lora.rank", "2", "--reference", "alignkit.policy.FrozenCopy")
    fit(alignkit, "--config", config, "--run", "lora", *lora, *own("Watch"))
    assert [now.reference_is_policy for now in Watch.seen] == [now.step % STEPS == 0 for now in Watch.seen]
    opponent = load_file(tmp_path / "lora/rounds/1/opponent.safetensors")
    assert opponent
    assert all("lora_" in name for name in opponent)
    shutil.copytree(tmp_path / "lora", tmp_path / "again")
    fit(
        alignkit, "--config", config, "--run", "again", *lora, "--ckpt_path", "again/checkpoints/round-1.ckpt"
    )
    assert_same(tmp_path / "lora", tmp_path / "again")


def test_adapters_switched_off_cannot_be_renewed(alignkit: Run, config: str, tmp_path: Path) -> None:
    code, _, err = alignkit("fit", "--config", config, "--backbone.lora.rank", "2")
    assert code == 2
    assert "cannot take later weights; give reference: alignkit.policy.FrozenCopy" in err
    assert not (tmp_path / "runs").exists()


def test_one_round_needs_no_renewal(alignkit: Run, config: str) -> None:
    short = ("--trainer.max_steps", "2", "--sampler.rounds", "1")
    fit(alignkit, "--config", config, "--backbone.lora.rank", "2", *short)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trainer.max_steps", "10"), "SelfPlay: rounds = 3 must divide trainer.max_steps, got 10"),
        (("--objective", "SFT"), "SelfPlay asks the reference, but SFT looks at none"),
        (
            ("--objective", "IPO", "--sampler.betas", "[1.0, 2.0, 3.0]"),
            "SelfPlay: betas need an objective that has a beta, got IPO",
        ),
        (("--data.ties", "soft"), "reads the winner alone"),
    ],
)
def test_mistakes_are_told_before_anything_is_generated(
    alignkit: Run, config: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = alignkit("fit", "--config", config, *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


def forget(checkpoint: Path) -> None:
    """Takes the folder of its run out of a checkpoint."""
    state = read(checkpoint)
    state["callbacks"]["Rounds"]["folder"] = "nowhere"
    write(checkpoint, state)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (
            lambda run: (shutil.rmtree(run / "rounds"), forget(run / "checkpoints/every-step=6.ckpt")),
            (),
            "the checkpoint's opponent, opponent.safetensors, is",
        ),
        (
            lambda run: shutil.copy(*(run / f"rounds/{n}/opponent.safetensors" for n in (2, 1))),
            (),
            "is not the opponent that the checkpoint was trained against",
        ),
        (lambda run: None, ("--trainer.max_steps", "24"), "the checkpoint's rounds have 4 steps"),
        (lambda run: None, ("--sampler.rounds", "1"), "sampler.rounds: 3 -> 1"),
        (
            lambda run: None,
            ("--sampler.rounds", "1", "--allow-change", "sampler.rounds"),
            "the checkpoint is in round 2, but rounds = 1",
        ),
    ],
)
def test_checkpoint_whose_opponent_cannot_be_restored_is_refused(
    alignkit: Run,
    config: str,
    straight: Path,
    spoil: Callable[[Path], object],
    options: tuple[str, ...],
    message: str,
) -> None:
    shutil.copytree(straight, "run")
    spoil(Path("run"))
    last = "run/checkpoints/every-step=6.ckpt"
    code, _, err = alignkit("fit", "--config", config, "--run", "run", "--ckpt_path", last, *options)
    assert code == 2
    assert message in err


def test_losers_of_another_generator_are_replaced_and_said_so(
    alignkit: Run, config: str, straight: Path, tmp_path: Path
) -> None:
    """A run that goes on from round 2 with another learning rate has another opponent in round 3."""
    shutil.copytree(straight, tmp_path / "other")
    last = ("--run", "other", "--ckpt_path", "other/checkpoints/round-1.ckpt", "--optimizer.lr", "3e-4")
    last += ("--allow-change", "optimizer.lr")
    with pytest.warns(
        UserWarning, match=r"rounds/2/part-00000.safetensors is of another generator.* 5 others"
    ):
        fit(alignkit, "--config", config, *last)
    before, after = losers(straight, 2), losers(tmp_path / "other", 2)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name][0], after[name][0]) for name in before)


class Swapped(pl.Callback):
    """Renews the reference behind the rounds' back."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, AlignModule)
        if trainer.global_step == 2 and pl_module.reference is not None:
            pl_module.reference.renew()


def test_batch_of_losers_by_another_opponent_is_refused(alignkit: Run, config: str) -> None:
    code, _, err = alignkit("fit", "--config", config, *own("Swapped"))
    assert code == 2
    assert "are of another opponent: made by" in err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("sd15", "pipeline"), ("sdxl", "xl_pipeline")])
def test_a_users_config_runs_on_their_pipeline_and_parquet_files(
    alignkit: Run, name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The configs of Pick-a-Pic with a small pipeline and one process: three rounds of one step."""
    pairs = str(FOLDER / "data" / "pairs.parquet")
    pipeline = str(request.getfixturevalue(kind))
    small = ("--backbone.path", pipeline, "--data.train.path", pairs, "--data.validation.path", pairs)
    small += ("--data.train.max_pairs", "20", "--sampler.num_steps", "1", "--data.resolution", "16")
    small += ("--trainer.devices", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0")
    small += (
        "--trainer.max_steps",
        "3",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    )
    small += ("--trainer.accumulate_grad_batches", "2", "--trainer.enable_progress_bar", "false")
    off = ("--evaluation.max_prompts", "0", "--samples.num_prompts", "0")
    fit(alignkit, "--config", f"spin_diffusion/{name}_pickapic.yaml", "--run", "run", *small, *off)
    counts = {len(losers(tmp_path / "run", number)) for number in range(ROUNDS)}
    assert len(counts) == 1
    assert counts != {0}
