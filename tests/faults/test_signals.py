"""Signals to whole runs: what is saved, how it ends, and that it goes on as if nothing had been."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from alignkit.checkpoints import CheckpointFiles, read
from alignkit.cli import main
from alignkit.data import AlignData
from alignkit.evaluation import Evaluation
from alignkit.module import AlignModule
from alignkit.testing import ToyBackbone, ToyPairs
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise
from tests.runs import environment

# 32 pairs without ties: epochs of 8 micro-steps; 3 batches of held-out pairs
CONFIG = """
seed_everything: 3
objective: {name: DiffusionDPO, beta: 200.0}
sampler: SharedNoise
backbone: {class_path: alignkit.testing.ToyBackbone}
optimizer: {name: AdamW, lr: 1.0e-3}
data:
  train: {class_path: alignkit.testing.ToyPairs, init_args: {count: 40}}
  validation: {class_path: alignkit.testing.ToyPairs, init_args: {count: 15}}
  batch_size: 4
  resolution: 16
evaluation: {max_prompts: 2, images_per_prompt: 1, num_steps: 2, sheet_prompts: 1}
samples: {every: 6, num_prompts: 2, num_steps: 2}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 14
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 6
  enable_progress_bar: false
  callbacks:
  - {class_path: alignkit.callbacks.EMA, init_args: {decay: 0.9}}
"""


class Told(pl.Callback):
    """Sends this process signals when a hook is called for the n-th time; notes what validation found.

    Args:
        hook: name of the hook.
        call: which call of it, from 1.
        numbers: the signals.
    """

    found: ClassVar[dict[int, float]] = {}

    def __init__(self, hook: str = "", call: int = 1, *numbers: int) -> None:
        self.call, self.numbers, self._calls = call, numbers or (signal.SIGTERM,), 0
        if hook:
            setattr(self, hook, self._count)

    def _count(self, *_: Any, **__: Any) -> None:
        self._calls += 1
        if self._calls == self.call:
            for number in self.numbers:
                signal.raise_signal(number)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.found[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


Run = Callable[..., tuple[int, str]]


@contextmanager
def told_by(told: pl.Callback) -> Iterator[None]:
    """Gives runs one more callback, of which their configs know nothing."""
    own = AlignModule.configure_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlignModule, "configure_callbacks", lambda module: [*own(module), told])
        yield


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`alignkit fit` in this process; gives its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]

    def run(*arguments: str, told: Told | None = None) -> tuple[int, str]:
        monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
        Told.found.clear()
        capfd.readouterr()
        with told_by(told or Told()):
            code = main(["fit", "--config", "toy.yaml", "--run", "run", *arguments])
        return code, capfd.readouterr().err

    yield run
    monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
    assert [signal.getsignal(number) for number in numbers] == before


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "toy.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """A run that nobody told anything, and what its validations found."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "toy.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, told_by(Told()):
        patch.setenv("ALIGNKIT_RUN", str(folder / "run"))
        Told.found.clear()
        assert main(["fit", "--config", str(folder / "toy.yaml")]) == 0
    return folder / "run", dict(Told.found)


@pytest.mark.parametrize(
    ("hook", "call", "step"),
    [
        ("on_before_backward", 5, 5),
        ("on_train_epoch_end", 1, 8),
        ("on_validation_batch_start", 2, 6),
        ("on_train_batch_end", 14, 14),
        *(
            pytest.param(*place, marks=pytest.mark.slow)
            for place in [
                ("on_train_batch_start", 1, 1),
                ("on_before_optimizer_step", 8, 8),
                ("on_train_batch_end", 6, 6),
                ("on_train_epoch_start", 2, 9),
                ("on_validation_start", 1, 6),
                ("on_validation_batch_end", 3, 6),
                ("on_validation_epoch_end", 2, 12),
            ]
        ),
    ],
)
def test_a_run_is_saved_once_and_goes_on_as_if_nothing_had_been(
    fit: Run,
    straight: tuple[Path, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hook: str,
    call: int,
    step: int,
) -> None:
    saved: list[str] = []
    save = CheckpointFiles.save_checkpoint

    def noted(self: CheckpointFiles, checkpoint: dict[str, Any], path: str, **options: Any) -> None:
        saved.append(f"{checkpoint['global_step']}")
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", noted)
    code, said = fit(told=Told(hook, call))
    assert code == 143, said
    assert said.count("once more to stop at once") == 1
    assert "SIGTERM: " in said
    assert "alignkit fit --config run/config.yaml --run run --ckpt_path last" in said
    assert "Traceback" not in said
    last = read(tmp_path / "run/checkpoints/last.ckpt")
    assert last["global_step"] == step
    assert saved == [str(number) for number in (6, 12) if number < step] + [str(step)]
    before = dict(Told.found)
    code, said = fit("--ckpt_path", "last")
    assert code == 0, said
    ours, theirs = weights(tmp_path / "run"), weights(straight[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert {**before, **Told.found} == straight[1]


def test_ctrl_c_is_as_sigterm_with_another_code(fit: Run, tmp_path: Path) -> None:
    code, said = fit(told=Told("on_before_backward", 3, signal.SIGINT))
    assert code == 130
    assert "SIGINT: saving after this micro-step; once more to stop at once\n" in said
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


def test_whoever_is_told_before_anything_leaves_nothing(fit: Run, tmp_path: Path) -> None:
    """Once more is possible there: what a run has made before its first micro-step can be made anew."""
    for hook in ("setup", "on_fit_start"):
        code, said = fit(told=Told(hook))
        assert (code, "Traceback" in said) == (143, False), said
        assert said.endswith("alignkit: stopped; nothing was trained, and nothing saved\n")
        assert not (tmp_path / "run").exists()
    code, said = fit(told=Told("on_train_start"))
    assert code == 143
    assert said.endswith("alignkit: stopped; nothing was trained, and nothing saved\n")


def test_a_resumed_run_that_is_told_at_once_is_as_it_was(fit: Run, tmp_path: Path) -> None:
    fit(told=Told("on_train_batch_end", 3))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()}
    for hook in ("setup", "on_fit_start", "on_train_start"):
        code, _ = fit("--ckpt_path", "last", told=Told(hook))
        assert code == 143
        assert {path.name: path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()} == before


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_pictures_in_the_midst_of_training_are_left_at_once(
    fit: Run,
    straight: tuple[Path, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nth: int,
) -> None:
    """The base's and the policy's at step 6, the policy's at step 12: nothing is lost but them."""
    generate, calls = ToyBackbone.generate, []

    def stopped(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == nth:
            signal.raise_signal(signal.SIGTERM)
        return generate(*arguments, **options)

    monkeypatch.setattr(ToyBackbone, "generate", stopped)
    code, said = fit()
    assert (code, len(calls), "Traceback" in said) == (143, nth, False), said
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == (12 if nth == 3 else 6)
    code, said = fit("--ckpt_path", "last")
    assert code == 0, said
    ours, theirs = weights(tmp_path / "run"), weights(straight[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_the_evaluation_at_the_end_is_left_at_once_and_made_anew(
    fit: Run, straight: tuple[Path, dict[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_compared", lambda *_: signal.raise_signal(signal.SIGINT))
        code, said = fit()
    assert (code, "Traceback" in said) == (130, False), said
    assert "alignkit fit --config run/config.yaml --run run --ckpt_path last" in said
    assert not (tmp_path / "run/summary.json").exists()
    code, said = fit("--ckpt_path", "last")
    assert code == 0, said
    assert (tmp_path / "run/summary.json").is_file()
    ours, theirs = weights(tmp_path / "run"), weights(straight[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_self_play_ends_after_the_file_at_hand_and_generates_the_rest(
    fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 prompts, a file each, and rounds of 4 steps; the signal comes in the third file of the second one."""
    options = ["--sampler=SelfPlay", "--sampler.rounds=2", "--sampler.num_steps=2", "--trainer.max_steps=8"]
    options += ["--sampler.batch_size=1", "--sampler.chunk_size=1", "--samples.num_prompts=0"]
    code, said = fit(*options)
    assert code == 0, said
    theirs = weights(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "straight")
    files = len(list((tmp_path / "straight/rounds/1").glob("part-*")))
    assert files == 6
    generate, calls = ToyBackbone.generate, []

    def stopped(*arguments: Any, **given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == files + 3:
            signal.raise_signal(signal.SIGTERM)
        return generate(*arguments, **given)

    monkeypatch.setattr(ToyBackbone, "generate", stopped)
    code, said = fit(*options)
    assert (code, "Traceback" in said) == (143, False), said
    assert "SIGTERM: ending after this file of pictures" in said
    assert len(list((tmp_path / "run/rounds/1").glob("part-*"))) == 3
    assert (tmp_path / "run/checkpoints/last.ckpt").resolve().name == "round-1.ckpt"
    calls.clear()
    code, said = fit(*options, "--ckpt_path", "last")
    assert code == 0, said
    assert len(calls) == 3 + 2  # the evaluation draws twice
    ours = weights(tmp_path / "run")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_a_cache_ends_after_the_batch_at_hand_and_makes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    encode, sizes = ToyBackbone.encode_images, []

    def stopped(self: ToyBackbone, image_NCHW: torch.Tensor) -> Any:
        sizes.append(len(image_NCHW))
        if len(sizes) == 3:
            signal.raise_signal(signal.SIGINT)
        return encode(self, image_NCHW)

    monkeypatch.setattr(ToyBackbone, "encode_images", stopped)
    command = ["cache", "--config", "toy.yaml", "--out", "cache", "--batch-size", "8", "--file-rows", "8"]
    code, said = main(command), capfd.readouterr().err
    assert (code, "Traceback" in said) == (130, False), said
    assert "what was done is kept; call this again to go on" in said
    # the first is to find out how large a latent is
    assert sizes == [1, 8, 8]
    assert main(command) == 0
    assert sizes == [1, 8, 8] + [8] * (80 // 8 - 2)


def test_mid_accumulation_is_saved_as_it_is(fit: Run, tmp_path: Path) -> None:
    """2 micro-steps of 3 have been taken since the last optimizer step."""
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.max_steps=4", "--samples.num_prompts=0"]
    assert fit(*options)[0] == 0
    theirs = weights(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "straight")
    code, said = fit(*options, told=Told("on_before_backward", 5))
    assert code == 143, said
    last = read(tmp_path / "run/checkpoints/last.ckpt")
    loops = last["loops"]["fit_loop"]
    assert (last["global_step"], loops["epoch_loop.batch_progress"]["total"]["completed"]) == (1, 5)
    code, said = fit(*options, "--ckpt_path", "last")
    assert code == 0, said
    ours = weights(tmp_path / "run")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_a_trainer_that_nobody_attached_to_keeps_its_own_handling(tmp_path: Path) -> None:
    """As in a notebook: the handlers are those of before when it is done."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    module = AlignModule(DiffusionDPO(), SharedNoise(), ToyBackbone(), torch.optim.AdamW)
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=AlignData(ToyPairs(), batch_size=4, resolution=16))
    assert trainer.global_step == 2
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/scontrol.txt
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of one task, and what its ``scontrol`` is told."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(SCONTROL.format(folder=tmp_path))
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    told = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    told |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "align", "SLURM_NODELIST": "localhost"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "scontrol.txt"


def test_a_requeued_job_goes_on_in_its_folder_by_itself(
    fit: Run,
    cluster: Path,
    straight: tuple[Path, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Saved through the same path; other runs of that name, of the job and of others, are left alone."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "another").touch()
    before = signal.getsignal(signal.SIGUSR1)
    code, said = fit(told=Told("on_before_backward", 9, signal.SIGUSR1))
    assert (code, "Traceback" in said) == (128 + signal.SIGUSR1, False), said
    assert "SIGUSR1: saving after this micro-step" in said
    assert said.endswith("; job 4711 is requeued and goes on by itself\n")
    assert signal.getsignal(signal.SIGUSR1) == before
    assert cluster.read_text() == "requeue 4711\n"
    assert read(tmp_path / "run-2/checkpoints/last.ckpt")["global_step"] == 9
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, said = fit()
    assert code == 0, said
    assert "9 of" not in said
    ours, theirs = weights(tmp_path / "run-2"), weights(straight[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    # what is done is not gone on with
    code, said = fit("--trainer.max_steps=1")
    assert code == 0, said
    assert (tmp_path / "run-3/toy.safetensors").is_file()


def test_a_job_in_an_array_that_cannot_be_requeued_says_so(
    fit: Run, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    code, said = fit(told=Told("on_before_backward", 2, signal.SIGUSR1))
    assert code == 128 + signal.SIGUSR1
    assert "scontrol requeue 40_2 failed: no such partition; submit the job again" in said
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2


def test_a_job_that_is_not_requeued_gets_plain_sigterm(fit: Run, cluster: Path, tmp_path: Path) -> None:
    plain = "--trainer.plugins={class_path: lightning.pytorch.plugins.environments.SLURMEnvironment, "
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        told = Told("on_before_backward", 2, signal.SIGUSR1, signal.SIGTERM)
        code, said = fit(plain + "init_args: {auto_requeue: false}}", told=told)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert code == 143, said
    assert not cluster.exists()


class Stuck(pl.Callback):
    """Waits after the third micro-step for what never comes, as a collective does whose peer hangs."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            print("stuck", flush=True)
            library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            for _ in range(2):  # no signal interrupts it
                library.pthread_mutex_lock(mutex)


MAIN = ("-m", "alignkit.cli")
STUCK = """
import sys
from tests.faults.test_signals import Stuck, main, told_by
with told_by(Stuck()):
    sys.exit(main())
"""


@contextmanager
def started(folder: Path, *arguments: str, start: Sequence[str] = MAIN) -> Iterator[subprocess.Popen[str]]:
    """`alignkit fit` as a process, in a group of its own, of which nothing is left at the end."""
    (folder / "toy.yaml").write_text(CONFIG)
    command = [sys.executable, *start, "fit", "--config", "toy.yaml", "--run", "run"]
    endless = ["--trainer.max_steps=1000000", "--trainer.val_check_interval=20", "--samples.num_prompts=0"]
    process = subprocess.Popen(
        [*command, *endless, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def assert_nothing_is_left(process: subprocess.Popen[str]) -> None:
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whom"), [(signal.SIGTERM, "group"), (signal.SIGINT, "second")])
def test_two_processes_end_together_whoever_is_told(tmp_path: Path, number: int, whom: str) -> None:
    """Both and their loaders' workers, as a cluster or a terminal does; or the second one alone."""
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp", f"--data.num_workers={int(whom == 'group')}")
    last = tmp_path / "run/checkpoints/last.ckpt"
    with started(tmp_path, *ddp) as process:
        wait_for(last, process)
        if whom == "group":
            os.killpg(process.pid, number)
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]), number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + number, said
        assert_nothing_is_left(process)
    assert said.count(f"{signal.Signals(number).name}: saving after this micro-step") == 1
    assert said.count("alignkit: stopped; saved in") == 1
    for trouble in ("Traceback", "Error", "Connection", "terminated"):
        assert trouble not in said
    # that of a validation, and the one that was saved now, unless it was told before the next step
    steps = sorted(read(path)["global_step"] for path in last.parent.glob("epoch*"))
    assert read(last)["global_step"] == steps[-1]
    assert len(steps) in {1, 2}
    assert all(step % 20 == 0 for step in steps[:-1])


@pytest.mark.slow
def test_a_second_signal_ends_what_hangs(tmp_path: Path) -> None:
    with started(tmp_path, start=("-c", STUCK)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 143
        assert_nothing_is_left(process)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
