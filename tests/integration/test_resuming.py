"""Going on through the command line: what a run may change, what it may not, and who hears of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from alignkit import Batch
from alignkit.checkpoints import read, write
from alignkit.resuming import Onlooker
from alignkit.testing import ToyBackbone, ToyPairs
from tests.runs import TOY, environment

Run = Callable[..., tuple[int, str, str]]

TRAINER = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks: [{class_path: alignkit.callbacks.EMA, init_args: {decay: 0.9}}]
"""
CONFIG = TOY + TRAINER
LAST = "run/checkpoints/last.ckpt"


@pytest.fixture
def resume(alignkit: Run, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Goes on, to step 6, with a run that stopped after four; gives the exit code and what was said."""
    config = tmp_path / "toy.yaml"
    config.write_text(CONFIG)
    code, _, err = alignkit("fit", "--config", str(config), "--run", "run")
    assert code == 0, err

    def run(*options: str, ckpt_path: str = LAST) -> tuple[int, str]:
        given = ("--run", "run", "--ckpt_path", ckpt_path, "--trainer.max_steps", "6", *options)
        code, _, err = alignkit("fit", "--config", str(config), *given)
        return code, err

    return run


Resume = Callable[..., tuple[int, str]]


def test_what_trains_otherwise_is_refused_before_anything_is_loaded(
    resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, by key, before and now, and how to allow it; the run's folder is as it was."""
    saved = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    monkeypatch.delattr(ToyBackbone, "build_policy")
    changed = (
        "--objective.beta",
        "30",
        "--trainer.gradient_clip_val",
        "1",
        "--trainer.callbacks.decay",
        "0.8",
    )
    changed += ("--data.train.count", "50", "--sampler.min_step", "1")
    changed += ("--reference", "alignkit.policy.FrozenCopy")
    code, err = resume(*changed)
    assert code == 2
    first, *lines = err.splitlines()
    assert first == f"alignkit: error: {LAST} is of a run that differs from this one:"
    assert set(" ".join(lines[:-1]).strip().split("; ")) == {
        "objective.beta: 20.0 -> 30.0",
        "reference: none -> FrozenCopy",
        "trainer.gradient_clip_val: none -> 1",
        "trainer.callbacks.EMA.decay: 0.9 -> 0.8",
        "data.train.count: 60 -> 50",
        "sampler.min_step: 0 -> 1",
    }
    assert "--allow-change objective.beta" in lines[-1]
    assert len(lines) <= 4
    code, err = resume("--objective", "IPO", "--objective.tau", "1")
    assert "  objective: DiffusionDPO -> IPO\n" in err
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == saved


def test_what_does_not_alter_the_result_may_change(resume: Resume) -> None:
    """Of batches, only how many pairs make a step counts."""
    free = ("--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2", "--data.num_workers", "1")
    free += ("--trainer.limit_val_batches", "1", "--data.validation.count", "20", "--samples.every", "7")
    looking = ("--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",)
    code, err = resume(*free, *looking)
    assert code == 0, err
    assert read(Path(LAST))["changes"] == []
    code, err = resume("--data.batch_size", "4")
    assert code == 2
    assert "  trainer.accumulate_grad_batches: 2 -> 1\n" in err


def test_an_allowed_change_takes_effect_and_is_told_ever_after(
    resume: Resume, caplog: pytest.LogCaptureFixture
) -> None:
    """A part of a key allows what is below it. The optimizer's state would bring its old settings back."""
    changed = ("--objective.beta", "30", "--optimizer.lr", "2e-3", "--trainer.callbacks.decay", "0.8")
    code, err = resume(*changed, "--allow-change", "objective", "--allow-change=optimizer.lr")
    assert code == 2
    assert "beta" not in err
    assert "  trainer.callbacks.EMA.decay: 0.9 -> 0.8\n" in err
    allowed = [f"--allow-change={key}" for key in ("objective", "optimizer.lr", "trainer.callbacks")]
    code, err = resume(*changed, *allowed)
    assert code == 0, err
    assert "from step 4 on, this run is another: trainer.callbacks.EMA.decay: 0.9 -> 0.8; " in caplog.text
    recorded = [
        {"step": 4, "key": "trainer.callbacks.EMA.decay", "from": 0.9, "to": 0.8},
        {"step": 4, "key": "objective.beta", "from": 20.0, "to": 30.0},
        {"step": 4, "key": "optimizer.lr", "from": 1e-3, "to": 2e-3},
    ]
    state = read(Path(LAST))
    assert state["changes"] == recorded
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 2e-3
    assert state["config"]["objective"]["init_args"]["beta"] == 30.0
    assert json.loads(Path("run/summary.json").read_text())["changes"] == recorded
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert "allow_change" not in config
    assert config["objective"]["init_args"]["beta"] == 30.0
    code, err = resume(*changed, "--trainer.max_steps", "7")
    assert code == 0, err
    assert read(Path(LAST))["changes"] == recorded


def test_other_pairs_are_refused_though_the_config_is_the_same(
    resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Path("run/config.yaml").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ToyPairs, "labels", lambda self: [1.0 - index % 2 for index in range(self.count)])
        code, err = resume()
    assert code == 2
    assert "  data.labels: " in err
    assert "data.pairs" not in err
    code, err = resume("--data.train.count", "50", "--allow-change", "data.train")
    assert code == 2
    assert "  data.pairs: 60 -> 50; data.ids_and_prompts: " in err
    assert Path("run/config.yaml").read_bytes() == told
    code, err = resume("--data.train.count", "50", "--allow-change", "data")
    assert code == 0, err


def test_another_reference_is_refused(resume: Resume) -> None:
    other = ("--backbone.seed", "1", "--allow-change", "backbone.seed")
    before, told = Path(LAST).read_bytes(), Path("run/config.yaml").read_bytes()
    code, err = resume(*other)
    assert code == 2
    assert "  reference: " in err
    assert "--allow-change reference" in err
    assert Path(LAST).read_bytes() == before
    assert Path("run/config.yaml").read_bytes() == told
    code, err = resume(*other, "--allow-change", "reference")
    assert code == 0, err
    assert [change["key"] for change in read(Path(LAST))["changes"]] == ["backbone.seed", "reference"]


def test_validating_asks_for_the_same_reference_alone(resume: Resume, alignkit: Run) -> None:
    options = ("validate", "--config", "toy.yaml", "--ckpt_path", LAST)
    code, _, err = alignkit(*options, "--objective.beta", "30")
    assert code == 0, err
    code, _, err = alignkit(*options, "--backbone.seed", "1")
    assert code == 2
    assert "  reference: " in err


def test_a_run_that_moved_goes_on_by_its_last(resume: Resume) -> None:
    shutil.move("run", "moved")
    code, err = resume("--run", "moved", ckpt_path="last")
    assert code == 0, err
    assert read(Path("moved/checkpoints/last.ckpt"))["global_step"] == 6
    code, err = resume("--run", "moved", "--objective.beta", "30", ckpt_path="last")
    assert code == 2
    assert "moved/checkpoints/last.ckpt is of a run that differs" in err


def test_a_checkpoint_without_a_config_is_taken_with_a_warning(resume: Resume) -> None:
    """A script's own Trainer saves none."""
    state = read(Path(LAST))
    del state["config"]
    write(Path("scripted.ckpt"), state)
    with pytest.warns(UserWarning, match="holds no config: whether it changed is not checked"):
        code, err = resume(ckpt_path="scripted.ckpt")
    assert code == 0, err
    del state["place"]
    write(Path("scripted.ckpt"), state)
    code, err = resume("--trainer.max_steps", "7", ckpt_path="scripted.ckpt")
    assert code == 2
    assert "does not say which pairs it was trained on" in err


class Stopped(Onlooker):
    """Writes down which pairs each process trains on, saves after some batches, and may stop there."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.after, self.seen = after, list[tuple[int, int, int]]()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        number = trainer.fit_loop.total_batch_idx + 1
        self.seen += [(number, *it) for it in zip(batch.id_B.tolist(), batch.visit_B.tolist(), strict=True)]
        if number == self.after:
            trainer.save_checkpoint(f"stopped-{trainer.world_size}.ckpt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        name = f"{Path(trainer.default_root_dir).name}-{trainer.global_rank}.json"
        Path(name).write_text(json.dumps(self.seen))


@pytest.mark.slow
def test_one_process_and_two_go_on_with_the_same_pairs(tmp_path: Path) -> None:
    """Stopped in mid-accumulation with 8 pairs in one process, or 4 in each of two; then the other way."""
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def fit(run: str, *options: str) -> None:
        command = [sys.executable, "-m", "alignkit.cli", "--trust", "tests"]
        command += ["fit", "--config=toy.yaml", f"--run={run}"]
        command += ["--trainer.accumulate_grad_batches=3", "--data.num_workers=0"]
        command += ["--trainer.callbacks+=tests.integration.test_resuming.Stopped"]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    def seen(run: str) -> list[list[int]]:
        return sorted(it for path in tmp_path.glob(f"{run}-*.json") for it in json.loads(path.read_text()))

    two = ("--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp")
    fit("one", "--trainer.callbacks.after=8")
    fit("two", "--trainer.callbacks.after=8", *two)
    whole = seen("one")
    assert whole == seen("two")
    fit("first", "--ckpt_path=stopped-1.ckpt", *two)
    fit("second", "--ckpt_path=stopped-2.ckpt", *two)
    # eight batches are two steps and two thirds: the third is begun anew
    assert seen("first") == seen("second") == [it for it in whole if it[0] > 6]
    final = [read(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("two", "second")]
    assert all(torch.equal(weight, final[1][name]) for name, weight in final[0].items())


def test_help_explains_how_to_allow_a_change(alignkit: Run) -> None:
    code, out, _ = alignkit("fit", "--help")
    assert code == 0
    assert "--allow-change KEY" in out
    assert "a key that may differ from the run's so far" in " ".join(out.split())
