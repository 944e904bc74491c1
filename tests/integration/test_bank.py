"""A reference bank through the command line: made, completed, trained from, refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from alignkit import Batch, PairRecord
from alignkit.checkpoints import read
from alignkit.data.bank.checking import TOLERANCE
from alignkit.module import AlignModule
from alignkit.policy import AdaptersOff, Reference, ReferenceDenoiser, Released
from alignkit.testing import ToyPairs
from tests.integration.processes import Together
from tests.runs import TOY, written

Run = Callable[..., tuple[int, str, str]]

# 48 pairs without ties in batches of 8: two epochs
TRAINER = """
trainer: {accelerator: cpu, devices: 1, max_steps: 12, log_every_n_steps: 1, enable_progress_bar: false}
"""
TINY = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 5.0e-5}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 20}}}}
  cache: cache
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 2, images_per_prompt: 1, num_steps: 2}}
samples: {{num_prompts: 0}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 8
  check_val_every_n_epoch: null
  val_check_interval: 4
  log_every_n_steps: 1
  enable_progress_bar: false
"""


class Broken(ToyPairs):
    """The third pair cannot be read."""

    def __getitem__(self, index: int) -> PairRecord:
        record = super().__getitem__(index)
        return record._replace(image_0=b"none") if index == 2 else record


class Twins(ToyPairs):
    """Two pairs share an id."""

    def ids(self) -> list[int]:
        return [1000, *super().ids()[:-1]]


@pytest.fixture
def config(tmp_path: Path) -> str:
    return written(tmp_path, TOY + TRAINER)


def done(alignkit: Run, *arguments: str) -> str:
    code, out, err = alignkit(*arguments)
    assert code == 0, err
    return out + err


def refused(alignkit: Run, *arguments: str) -> str:
    code, out, err = alignkit(*arguments)
    assert (code, out) == (2, ""), out + err
    return err


def banked(alignkit: Run, config: str, *options: str, out: str = "bank") -> str:
    return done(alignkit, "cache", "--reference", "--config", config, "--out", out, *options)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def policy(run: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read((Path(run) / "checkpoints/last.ckpt").resolve())["state_dict"]
    return state


def assert_same_weights(ours: str, theirs: str) -> None:
    found, expected = policy(ours), policy(theirs)
    assert found.keys() == expected.keys() != set()
    for name, weight in expected.items():
        assert_close(found[name], weight, rtol=0, atol=1e-6)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs the reference was asked about, each time."""
    counts: list[int] = []
    original = ReferenceDenoiser.__call__

    def counted(self: ReferenceDenoiser, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        counts.append(t_KB.shape[1])
        return original(self, x_KBCHW, t_KB)

    monkeypatch.setattr(ReferenceDenoiser, "__call__", counted)
    return counts


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--backbone.lora.rank", "2"),
        ("--objective", "DMPO", "--objective.beta", "200", "--weighting", "MinorityAware"),
        ("--objective", "KTO", "--data.ties", "coin"),
    ],
    ids=["full", "adapters", "dmpo, weighted", "coins"],
)
def test_a_run_with_a_bank_trains_the_same_weights(
    alignkit: Run, pipeline: Path, tmp_path: Path, asked: list[int], options: tuple[str, ...]
) -> None:
    """To 1e-6, with captions dropped and held-out loss; the reference is asked for the check alone."""
    config = written(tmp_path, TINY.format(pipeline=pipeline))
    done(alignkit, "cache", "--config", config, "--out", "cache", "--dtype", "float32")
    done(alignkit, "fit", "--config", config, "--run", "plain", *options)
    banked(alignkit, config, *options)
    asked.clear()
    done(alignkit, "fit", "--config", config, "--run", "run", "--data.bank", "bank", *options)
    assert sum(asked) == (60 if "coin" in options else 48)
    assert_same_weights("run", "plain")
    ours, theirs = (json.loads(Path(run, "summary.json").read_text()) for run in ("run", "plain"))
    for key, value in theirs["held_out"].items():
        assert ours["held_out"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    assert Path("run", "before_after.png").is_file()


def test_one_bank_serves_other_objectives_rates_and_labels(
    alignkit: Run, config: str, asked: list[int]
) -> None:
    banked(alignkit, config)
    for number, options in enumerate(
        [
            ("--objective.beta", "50"),
            ("--optimizer.lr", "1e-2"),
            ("--objective", "IPO"),
            ("--objective", "UnpairedKTO"),
        ]
    ):
        asked.clear()
        done(alignkit, "fit", "--config", config, *options, "--run", f"plain{number}")
        assert sum(asked) > 96
        asked.clear()
        done(alignkit, "fit", "--config", config, *options, "--data.bank", "bank", "--run", f"run{number}")
        assert sum(asked) == 48
        assert_same_weights(f"run{number}", f"plain{number}")


def test_what_a_killed_command_left_is_completed(alignkit: Run, config: str) -> None:
    banked(alignkit, config, "--file-rows", "16")
    whole = contents("bank")
    assert len(whole) == 6  # bank.json, four files of training pairs, one of held-out ones
    Path("bank", "train-00001.safetensors").unlink()
    Path("bank", "train-00002.safetensors").write_bytes(whole["train-00002.safetensors"][:-1])
    err = refused(alignkit, "fit", "--config", config, "--data.bank", "bank", "--run", "run")
    assert "'bank' is not finished: 2 files are missing or damaged: bank/train-00001.safetensors" in err
    assert not Path("run").exists()
    # rows 16 to 47, of which six are ties
    assert "26 train pairs at 2 visits, 0 validation pairs" in banked(alignkit, config, "--file-rows", "16")
    assert contents("bank") == whole


def test_after_its_visits_the_first_comes_again(
    alignkit: Run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    original = AlignModule.training_step

    def noted(self: AlignModule, batch: Batch, batch_idx: int) -> Tensor:
        if self.trainer.training:
            seen.append(set(batch.visit_B.tolist()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AlignModule, "training_step", noted)
    assert "48 train pairs, 8 validation pairs" in banked(alignkit, config, "--visits", "1")
    done(alignkit, "fit", "--config", config, "--data.bank", "bank", "--run", "once")
    assert seen == [{0}] * 12
    seen.clear()
    assert "48 train pairs at 2 visits" in banked(alignkit, config, out="both")
    done(alignkit, "fit", "--config", config, "--data.bank", "both", "--run", "twice")
    assert seen == [{0}] * 6 + [{1}] * 6


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--seed_everything", "4"), "seed_everything is 3 in the bank and 4 here"),
        (("--backbone.seed", "1"), "the reference differs"),
        (("--sampler.min_step", "5"), "the sampler is alignkit_standard.sampler.SharedNoise(max"),
        (("--sampler", "LogitNormalNoise"), "LogitNormalNoise(location=0.0, scale=1.0) here"),
        (("--trainer.precision", "bf16-mixed"), "trainer.precision is 32-true in the bank and bf16"),
        (("--backbone.resolution", "32", "--data.resolution", "32"), "data.resolution is 16 in the bank"),
        (("--data.flip", "0.5"), "crop_shift and flip is"),
        (("--data.cache", "cache"), "data.cache is none in the bank"),
        (("--data.train.init_args.count", "59"), "data.train differs"),
        (("--data.validation.init_args.count", "11"), "data.validation differs"),
    ],
)  # fmt: skip
def test_a_bank_of_something_else_is_refused(
    alignkit: Run, config: str, options: tuple[str, ...], told: str
) -> None:
    """Before a step, and with nothing left of the run."""
    done(alignkit, "cache", "--config", config, "--out", "cache")
    banked(alignkit, config)
    whole = contents("bank")
    fit = ("fit", "--config", config, "--run", "run", "--data.bank", "bank")
    err = refused(alignkit, *fit, *options)
    assert "data.bank: 'bank' was made from something else: " in err
    assert told in err
    assert not Path("run").exists()
    err = refused(alignkit, "cache", "--reference", "--config", config, "--out", "bank", *options)
    assert "--out bank: there is another reference bank in that folder: " in err
    assert told in err
    assert contents("bank") == whole


def test_numbers_of_another_numeric_path_are_caught(alignkit: Run, config: str) -> None:
    """Whatever the bank says of itself: what the reference says now is compared."""
    banked(alignkit, config)
    path = Path("bank", "train-00000.safetensors")
    said = load_file(path)
    metadata = {"alignkit": json.dumps({"cache": _identity(path)})}
    # a difference of margins by d moves a logit by 10 d, and the loss by half as much
    allowed = TOLERANCE / 5
    for factor, good in ((0.8, True), (1.25, False)):
        moved = said["logp"].clone()
        moved[:, 0] += factor * allowed
        save_file({"logp": moved}, path, metadata=metadata)
        fit = ("fit", "--config", config, "--data.bank", "bank", "--run", f"run{factor}")
        if good:
            assert "48 pairs asked about again, which moves the loss by at most 0.004" in done(alignkit, *fit)
            continue
        err = refused(alignkit, *fit)
        assert "the reference says something else than the bank: that moves the loss by 0.006" in err
        assert not Path(f"run{factor}").exists()


def _identity(path: Path) -> str:
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    told: str = json.loads(header["__metadata__"]["alignkit"])["cache"]
    return told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--objective", "SFT"), "data.bank is given, but SFT looks at no reference; leave it out"),
        (("--sampler", "DDIMInversion"), "data.bank: DDIMInversion asks the networks for its points"),
        (("--data.bucket_step", "8"), "a bank holds squares: with it, bucket_step must be null, got 8"),
        (("--data.ties", "coin"), "has no numbers of 12 of the 60 pairs of data.train"),
        (("--data.bank", "none"), "'none' holds no reference bank (it has no bank.json); make it with"),
    ],
)
def test_what_no_bank_can_serve_is_refused(
    alignkit: Run, config: str, options: tuple[str, ...], told: str
) -> None:
    banked(alignkit, config)
    assert told in refused(
        alignkit, "fit", "--config", config, "--data.bank", "bank", "--run", "run", *options
    )
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--out: give a folder for the bank, or a config that has data.bank"),
        (("--out", "bank", "--visits", "0"), "--visits must be at least 1, got 0"),
        (("--out", "bank", "--objective", "SFT"), "data.bank is given, but SFT looks at no reference"),
        (("--out=bank", "--trainer.max_steps=-1", "--trainer.max_epochs=-1"), "this run has no end"),
        (("--out", "bank", "--data.train", f"{__name__}.Twins"), "1 are there twice, such as 1000"),
        (("--out", "bank", "--data.bucket_step", "8"), "bucket_step must be null, got 8"),
    ],
)  # fmt: skip
def test_what_no_bank_can_be_made_of_is_refused(
    alignkit: Run, config: str, options: tuple[str, ...], told: str
) -> None:
    assert told in refused(alignkit, "--trust", "tests", "cache", "--reference", "--config", config, *options)
    assert not Path("bank").exists()


def test_a_pair_that_cannot_be_read_is_left_out_as_without_a_bank(alignkit: Run, config: str) -> None:
    options = ("--data.train", f"{__name__}.Broken", "--data.max_unreadable", "0.05")
    with pytest.warns(UserWarning, match="pair 1002: .*; another pair is read instead"):
        done(alignkit, "--trust", "tests", "fit", "--config", config, *options, "--run", "plain")
    with pytest.warns(UserWarning, match="pair 1002"):
        done(
            alignkit,
            "--trust",
            "tests",
            "cache",
            "--reference",
            "--config",
            config,
            *options,
            "--out",
            "bank",
        )
    with pytest.warns(UserWarning, match="pair 1002"):
        done(
            alignkit,
            "--trust",
            "tests",
            "fit",
            "--config",
            config,
            *options,
            "--data.bank",
            "bank",
            "--run",
            "run",
        )
    assert_same_weights("run", "plain")
    logp_RSV = load_file("bank/train-00000.safetensors")["logp"]
    assert torch.isinf(logp_RSV[2]).all()
    assert logp_RSV[4].isnan().all()  # a tie
    others = [row for row in range(60) if row != 2 and row % 5 != 4]
    assert logp_RSV[others].isfinite().all()


@pytest.mark.parametrize("lora", [False, True])
def test_a_copy_of_the_weights_is_let_go(
    alignkit: Run, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lora: bool
) -> None:
    """No second network is held while training; adapters that are switched off are none."""
    config = written(tmp_path, TINY.format(pipeline=pipeline).replace("  cache: cache\n", ""))
    options = ("--backbone.lora.rank", "2") if lora else ()
    banked(alignkit, config, *options)
    held: list[Reference | None] = []
    original = AlignModule.training_step

    def noted(self: AlignModule, batch: Batch, batch_idx: int) -> Tensor:
        held.append(self.reference)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AlignModule, "training_step", noted)
    done(alignkit, "fit", "--config", config, *options, "--data.bank", "bank", "--run", "run")
    assert {type(reference) for reference in held} == {AdaptersOff if lora else Released}


def test_a_run_goes_on_and_is_validated_with_its_bank(alignkit: Run, config: str) -> None:
    banked(alignkit, config)
    fit = ("fit", "--config", config, "--data.bank", "bank")
    done(alignkit, *fit, "--run", "whole")
    done(alignkit, *fit, "--run", "run", "--trainer.max_steps", "5")
    done(alignkit, *fit, "--run", "run", "--ckpt_path", "last")
    whole, resumed = policy("whole"), policy("run")
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    again = ("validate", "--config", config, "--data.bank", "bank", "--run", "again")
    assert "48 pairs asked about again" in done(alignkit, *again, "--ckpt_path", "run/checkpoints/last.ckpt")


@pytest.mark.slow
def test_two_processes_make_the_bank_of_one_and_train_from_it(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    """Byte for byte; one process has three files of five to make."""
    rows, two = ("--file-rows", "16", "--visits", "2"), ("--trainer.devices=2", "--data.batch_size=4")
    banked(alignkit, config, *rows, "--data.batch_size=4")
    done(alignkit, "fit", "--config", config, "--data.bank", "bank", "--data.batch_size=8", "--run", "one")
    make = ["cache", "--reference", "--config", config, "--out", "shared", *rows, *two]
    fit = ["fit", "--config", config, "--data.bank", "shared", *two, "--trainer.strategy=ddp", "--run", "two"]
    with Together(tmp_path, [make, fit], 2) as running:
        running.wait()
    assert contents("shared") == contents("bank")
    assert_same_weights("two", "one")
