"""Sweeps through the command line: what is refused, said, made once, run, killed, gone on with, and told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from alignkit.checkpoints import read
from alignkit.evaluation import callback
from alignkit.module import AlignModule
from alignkit.resuming import Onlooker
from alignkit.signals import is_told
from alignkit.sweep import validations
from tests.runs import TOY, environment, written

Run = Callable[..., tuple[int, str, str]]

TRAINER = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 12
  check_val_every_n_epoch: null
  val_check_interval: 4
  log_every_n_steps: 1
  enable_progress_bar: false
"""
WAITS = """\
  callbacks:
  - {class_path: tests.integration.test_sweep.Waits}
"""
GRID = ("--grid", "objective.beta=20,5")


class Waits(Onlooker):
    """Waits after step 7, in the folder of the test, until it may go on or is told to end."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 7:
            assert isinstance(pl_module, AlignModule)
            beta = f"{pl_module.objective.beta:g}"
            Path(f"waits-{beta}").touch()
            while not Path(f"go-{beta}").exists() and not is_told():
                time.sleep(0.05)


@pytest.fixture(autouse=True)
def _found_by_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def config(tmp_path: Path) -> str:
    written(tmp_path, TOY + TRAINER)
    return "tiny.yaml"


def trials(out: str = "sweeps/tiny") -> dict[int, dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(Path(out, "trials.json").read_text())["trials"]
    return {row["number"]: row for row in rows}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "nothing to vary: give --grid KEY=V1,V2, or --range KEY=LOW..HIGH"),
        (("--grid", "objective.betta=5,6"), "DiffusionDPO has no argument 'betta'; did you mean beta?"),
        (("--grid", "objectve.beta=5,6"), "unknown option --objectve.beta; did you mean --objective."),
        (("--grid", "objective.beta=5,-6"), "beta must be positive, got -6"),
        (("--grid", "objective=IPO,IPPO"), "unknown objective 'IPPO'; did you mean 'IPO'?"),
        (("--grid", "objective.beta=5,,6"), "a value of objective.beta is empty"),
        (("--grid", "objective.beta="), "gives objective.beta no value"),
        ((*GRID, *GRID), "objective.beta is varied twice"),
        (("--range", "objective.beta=-5..6", "--trials", "3"), "beta must be positive, got -5"),
        (("--range", "objective.beta=5..6"), "--trials N: say how many; sampler tpe knows no end"),
        (("--range", "objective.beta=5..6", "--sampler", "grid"), "a grid needs values"),
        ((*GRID, "--trials", "0"), "--trials must be at least 1, got 0"),
        ((*GRID, "--run", "x"), "--run: a sweep gives it to each of its runs; leave it out"),
        ((*GRID, "--metric", "Prettiness"), "no reward of that name judges this config's runs"),
        ((*GRID, "--metric", "vendi"), "evaluation.max_prompts is 0; choose one of held-out pairs"),
        ((*GRID, "--metric", "loss:less"), "after the colon must stand higher or lower, got 'less'"),
        ((*GRID, "--seeds", "1,x"), "--seeds 1,x: must be different whole numbers"),
        (("--grid", "seed_everything=1,2", "--seeds", "1,2"), "--seeds and seed_everything cannot both"),
        (("--grid", "run=a,b"), "run cannot be varied: a sweep gives it to each of its runs"),
        ((*GRID, "--storage", "nosql://me:secret@host/x"), "--storage 'nosql://...@host/x': cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_before_anything_is_run(
    alignkit: Run, config: str, options: tuple[str, ...], told: str
) -> None:
    code, out, err = alignkit("sweep", config, *options)
    assert (code, out) == (2, ""), out + err
    assert told in err
    assert "secret" not in err
    assert not list(Path().rglob("*.db"))


def test_without_optuna_it_says_what_to_install(
    alignkit: Run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = alignkit("sweep", config, "--range", "objective.beta=5..6", "--trials", "2", "--dry-run")
    assert code == 2
    assert "alignkit sweep needs optuna: pip install 'alignkit[sweep]'" in err
    code, out, _ = alignkit("sweep", "--help")
    assert (code, "--grid KEY=V1,V2" in out) == (0, True)


def test_a_dry_run_says_everything_and_writes_nothing(alignkit: Run, config: str) -> None:
    sweep = (
        "sweep",
        config,
        *GRID,
        "--grid",
        "optimizer.lr=1e-3,1e-2",
        "--data.batch_size",
        "4",
        "--dry-run",
    )
    code, out, err = alignkit(*sweep)
    assert (code, err) == (0, "")
    assert out.startswith("4 trials of tiny.yaml, 4 runs; held-out rewards/accuracies, higher is better\n")
    assert "made once: sweeps/tiny/cache" in out
    assert "made once: sweeps/tiny/bank" in out
    assert (
        "trial 1: objective.beta=20, optimizer.lr=1e-2\n"
        "  alignkit --trust tests fit --config tiny.yaml --data.batch_size 4 --objective.beta=20 "
        "--optimizer.lr=1e-2 --data.cache=sweeps/tiny/cache --data.bank=sweeps/tiny/bank "
        "--run=sweeps/tiny/trials/001\n"
    ) in out
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--grid", "sampler.min_step=0,5"), "bank of the reference: trials differ in sampler.min_step"),
        (("--grid", "backbone.seed=0,1"), "cache of pictures and prompts: trials differ in backbone.seed"),
        (("--grid", "objective=SFT"), "bank of the reference: data.bank is given, but SFT looks at no"),
        ((*GRID, "--data.cache", "mine"), "the config has its own, data.cache: mine"),
        ((*GRID, "--share", "none"), "cache of pictures and prompts: --share leaves it out"),
        ((*GRID, "--trainer.max_steps", "2"), "making it would take as long as it saves"),
    ],
)
def test_what_trials_cannot_share_is_told(
    alignkit: Run, config: str, options: tuple[str, ...], told: str
) -> None:
    code, out, err = alignkit("sweep", config, *options, "--dry-run")
    assert code == 0, err
    assert f"no shared {told}" in out or told in out
    assert ("--data.bank" in out) == ("--data.cache" in options)


def test_draws_are_the_same_again_and_more_trials_begin_with_them(alignkit: Run, config: str) -> None:
    ranges = (
        "--range",
        "objective.beta=5..500:log",
        "--range",
        "data.batch_size=2..8",
        "--sampler",
        "random",
    )

    def said(*options: str) -> list[str]:
        code, out, err = alignkit("sweep", config, *ranges, *options, "--dry-run")
        assert code == 0, err
        return [line for line in out.splitlines() if line.startswith("trial ")]

    three, four = said("--trials", "3"), said("--trials", "4")
    assert len(four) == 4
    assert four[:3] == three == said("--trials", "3")
    assert said("--trials", "3", "--draw-seed", "1") != three


JUDGED = ("--evaluation.max_prompts=3", "--evaluation.images_per_prompt=1", "--evaluation.num_steps=2")


@pytest.mark.parametrize("measure", ["Redness", "rewards/accuracies"])
def test_validations_write_down_what_the_end_finds(alignkit: Run, config: str, measure: str) -> None:
    """The last validation of training sees the weights, prompts and noise of the evaluation at the end."""
    spec = {"class_path": "alignkit.sweep.validations.Validations", "init_args": {"measure": measure}}
    rewards = "--evaluation.rewards=[{class_path: tests.integration.test_evaluate.Redness}]"
    fit = ("fit", "--config", config, *JUDGED, rewards, "--run", "run")
    code, out, err = alignkit(*fit, f"--trainer.callbacks+={json.dumps(spec)}")
    assert code == 0, out + err
    said = validations.written(Path("run"))
    assert list(said) == [4, 8, 12]
    summary = json.loads(Path("run/summary.json").read_text())
    if measure == "Redness":
        assert said[12] == pytest.approx(summary["scores"][measure]["aligned"]["mean"], abs=1e-6)
        assert len(set(said.values())) == 3
    else:
        assert said[12] == pytest.approx(summary["held_out"][measure], abs=1e-6)


@pytest.mark.parametrize("lora", [(), ("--backbone.lora.rank=2",)], ids=["full", "adapters"])
def test_what_the_base_drew_is_drawn_once_and_only_for_what_it_follows_from(
    alignkit: Run, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: tuple[str, ...]
) -> None:
    text = (TOY + TRAINER).replace("max_steps: 12", "max_steps: 2")
    toy = "{class_path: alignkit.testing.ToyBackbone}"
    config = written(tmp_path, text.replace(toy, f"{{name: StableDiffusion, path: {pipeline}}}"))
    labels: list[str] = []
    original = callback.draw

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        labels.append(options["label"])
        return original(*arguments, **options)

    monkeypatch.setattr(callback, "draw", noted)
    rewards = "--evaluation.rewards=[{class_path: tests.integration.test_evaluate.Redness}]"
    fit = ("fit", "--config", config, *JUDGED, rewards, *lora)

    def scores(run: str, *options: str) -> dict[str, Any]:
        code, out, err = alignkit(*fit, "--run", run, *options)
        assert code == 0, out + err
        found: dict[str, Any] = json.loads(Path(run, "summary.json").read_text())["scores"]
        return found

    plain = scores("plain")
    share = "--evaluation.base_pictures=base"
    assert scores("first", share) == scores("second", share) == plain
    assert labels == ["base", "aligned", "base", "aligned", "aligned"]
    labels.clear()
    other = scores("third", share, "--optimizer.lr=1e-2")
    assert labels == ["aligned"]
    assert other["Redness"]["base"] == plain["Redness"]["base"] != other["Redness"]["aligned"]
    scores("fourth", share, "--evaluation.seed=7")
    assert labels == ["aligned", "base", "aligned"]
    (one, _) = sorted(Path("base").iterdir())
    one.write_bytes(one.read_bytes()[:-5])
    scores("fifth", share)
    scores("sixth", share, "--evaluation.seed=7")
    assert labels[3:].count("base") == 1


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "alignkit.cli", "--trust", "tests", "sweep", *arguments]


def begun(folder: Path, arguments: Sequence[str], waits: str) -> "subprocess.Popen[str]":
    """A sweep whose trial of that beta waits."""
    process = subprocess.Popen(
        command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(2400):
        if (folder / f"waits-{waits}").exists():
            return process
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


def policy(run: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read(Path(run, "checkpoints/last.ckpt").resolve())["state_dict"]
    return state


@pytest.mark.slow
def test_what_is_told_to_end_or_killed_goes_on(alignkit: Run, tmp_path: Path) -> None:
    """Cache and bank are made once, no finished trial is done twice, an interrupted one ends the same."""
    written(tmp_path, TOY + TRAINER + WAITS)
    sweep = ("tiny.yaml", *GRID)
    first = begun(tmp_path, sweep, "20")
    first.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    Path("go-20").touch()
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 143
    assert "ending as soon as what is at work has saved; once more to stop at once" in out
    assert out.endswith("alignkit: stopped; what was done is kept; call this again to go on\n")
    assert {number: row["state"] for number, row in trials().items()} == {0: "running", 1: "waiting"}
    shared = {path: path.stat().st_mtime_ns for path in Path("sweeps/tiny").glob("[bc]a*/*")}
    assert {path.parent.name for path in shared} == {"bank", "cache"}
    second = begun(tmp_path, sweep, "5")
    second.kill()
    second.communicate()
    Path("go-5").touch()
    done = Path("sweeps/tiny/trials/000/summary.json").stat().st_mtime_ns
    code, out, err = alignkit("sweep", *sweep)
    assert code == 0, out + err
    assert "trial 1: objective.beta=5\ntrial 1 is done" in out
    assert "trial 0:" not in out
    assert "making" not in out
    assert Path("sweeps/tiny/trials/000/summary.json").stat().st_mtime_ns == done
    assert {path: path.stat().st_mtime_ns for path in shared} == shared
    rows = trials()
    assert {number: row["state"] for number, row in rows.items()} == {0: "done", 1: "done"}
    for number, beta in ((0, "20"), (1, "5")):
        held_out = json.loads(Path(f"sweeps/tiny/trials/{number:03}/summary.json").read_text())["held_out"]
        assert rows[number]["metric"] == held_out["rewards/accuracies"]
        assert rows[number]["values"] == {"objective.beta": beta}
    shares = ("--data.cache", "sweeps/tiny/cache", "--data.bank", "sweeps/tiny/bank")
    fit = ("fit", "--config", "tiny.yaml", "--objective.beta", "5", *shares)
    assert alignkit(*fit, "--run", "straight")[0] == 0
    ours, theirs = policy("sweeps/tiny/trials/001"), policy("straight")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.slow
def test_a_job_that_is_about_to_end_saves_its_run_and_is_requeued(
    alignkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's signal reaches the run through the sweep, and the run asks for its job to begin anew."""
    written(tmp_path, TOY + TRAINER + WAITS)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >> requeued\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    with monkeypatch.context() as job:
        for name, value in (("NTASKS", "1"), ("JOB_ID", "7"), ("JOB_NAME", "sweep")):
            job.setenv(f"SLURM_{name}", value)
        process = begun(tmp_path, ("tiny.yaml", "--grid", "objective.beta=20", "--share", "none"), "20")
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        Path("go-20").touch()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, out
    assert Path("requeued").read_text() == "requeue 7\n"
    assert trials()[0]["state"] == "running"
    assert read(Path("sweeps/tiny/trials/000/checkpoints/last.ckpt"))["global_step"] == 7


@pytest.mark.slow
def test_a_trial_that_fails_is_noted_and_the_others_go_on(alignkit: Run, config: str) -> None:
    """A step of 1e30 makes weights that are no numbers, which the guards do not save; two seeds each."""
    sweep = ("sweep", config, "--grid", "optimizer.lr=1e30,1e-3", "--seeds", "4,5", "--share", "none")
    code, out, err = alignkit(*sweep, "--guards.max_skipped", "2", "--metric", "winner_mse")
    assert code == 0, out + err
    rows = trials()
    assert {number: row["state"] for number, row in rows.items()} == {0: "failed", 1: "done"}
    assert "finite" in rows[0]["error"]
    assert f"trial 0 failed: {rows[0]['error']}" in out
    assert "best is trial 1, optimizer.lr=1e-3: held-out winner_mse " in out
    assert "(lower is better); 1 failed, 1 done" in out
    found = [
        json.loads(Path(f"sweeps/tiny/trials/001/seed-{seed}/summary.json").read_text())["held_out"]
        for seed in (4, 5)
    ]
    assert rows[1]["parts"] == [one["winner_mse"] for one in found]
    assert len(set(rows[1]["parts"])) == 2
    assert rows[1]["metric"] == pytest.approx(sum(rows[1]["parts"]) / 2)
    page = Path("sweeps/tiny/trials.md").read_text()
    assert page.index("| 001 |") < page.index("| 000 |")
    assert Path("sweeps/tiny/trials.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = alignkit(*sweep[:2], *GRID)
    assert code == 2
    assert "--out sweeps/tiny: holds another sweep; varied: optimizer.lr=1e30,1e-3 -> objective.beta" in err


@pytest.mark.slow
def test_two_processes_share_the_trials_of_one_study(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TPE, by a journal, with pruning on what the validations report; each trial is done by one of them."""
    sweep = (config, "--range", "optimizer.lr=1e-4..1e-2:log", "--trials", "4", "--prune")
    storage = ("--storage", "journal:journal.log", "--trainer.max_steps", "8")
    processes = [
        subprocess.Popen(command(*sweep, *storage), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for number in range(4):
        assert sum(f"trial {number}: optimizer.lr=" in out for out in said) == 1
    assert sum("making sweeps/tiny/cache" in out for out in said) == 1
    monkeypatch.chdir(tmp_path)
    for number, row in trials().items():
        lines = Path(f"sweeps/tiny/trials/{number:03}/validations.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [4, 8]
        assert row["state"] in ("done", "pruned")


@pytest.mark.slow
def test_a_run_that_is_worse_than_the_others_is_ended_while_it_trains(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    """Its margin is nearly 0 at the first validation; it would wait for ever after that."""
    written(tmp_path, TOY + TRAINER + WAITS)
    betas = ("200", "400", "800", "0.001")
    for beta in betas[:3]:
        Path(f"go-{beta}").touch()
    sweep = (
        "sweep",
        config,
        f"--grid=objective.beta={','.join(betas)}",
        "--metric=rewards/margins",
        "--prune",
    )
    code, out, err = alignkit(*sweep)
    assert code == 0, out + err
    assert "trial 3 is ended: worse than the median at validation 1: " in out
    assert [row["state"] for row in trials().values()] == ["done"] * 3 + ["pruned"]
    assert not Path("sweeps/tiny/trials/003/summary.json").exists()
