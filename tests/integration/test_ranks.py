"""Two processes train, validate and evaluate as one does: every method's short config on a tiny pipeline.

One pair of processes runs all of them in turn, and one process that has their batches at once.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

from alignkit.checkpoints import read
from alignkit.configfiles import packaged_configs
from alignkit.data.loader import shared_out
from alignkit.testing import ToyPairs
from tests.integration.processes import Together

pytestmark = pytest.mark.slow

SHORT = [name for name in packaged_configs() if "/" not in name or name.startswith("mixtures/")]
STEPS, BATCH = 2, 4
NOISE = {"accuracies": 1.01 / BATCH, "minority/": 2e-3, "entropy/ratio": float("inf")}
# SGD: where Adam divides by the size of a gradient, what differs in its last bits would grow
OPTIONS = (
    f"--trainer.max_steps={STEPS} --trainer.val_check_interval={STEPS} --trainer.limit_val_batches=2 "
    "--trainer.log_every_n_steps=1 --trainer.enable_progress_bar=false --data.resolution=16 "
    "--optimizer=SGD --optimizer.lr=1e-2 --model.warmup_steps=0 "
    "--trainer.callbacks+=tests.integration.processes.SeenPairs "
    "--samples.num_prompts=0 --evaluation.max_prompts=0"
).split()
OWN: dict[str, list[str]] = {
    "adaptive_dpo.yaml": ["--weighting.warmup_steps=0"],
    "mixtures/dmpo_minority_aware.yaml": ["--weighting.warmup_steps=0"],
    "inversion_dpo.yaml": ["--sampler.num_steps=4"],
    "mixtures/dmpo_inversion.yaml": ["--sampler.num_steps=4"],
    "ppd.yaml": ["--conditioner.encoder=tests.plugins.ppd.people.Counting"],
    "mixtures/see_dpo_ppd.yaml": ["--conditioner.encoder=tests.plugins.ppd.people.Counting"],
    "spin_diffusion.yaml": [
        "--data.train=tests.integration.test_ranks.Pairs16",
        "--sampler.num_steps=2",
        "--sampler.chunk_size=4",
        "--sampler.batch_size=4",
    ],
}
TOYS = "--data.validation=tests.integration.test_ranks."
MORE: dict[str, list[str]] = {
    "single images": ["--config=kto.yaml", "--objective=UnpairedKTO"],
    "accumulated": [
        "--config=adaptive_dpo.yaml",
        "--weighting.warmup_steps=0",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.callbacks+=tests.integration.processes.Sent",
    ],
    # 13 pairs without the ties: the last batches are of 3 and 2
    "unequal": ["--config=kto.yaml", f"{TOYS}Pairs16", "--trainer.limit_val_batches=1.0"],
    # 9: one process has a pair more, for which it would need another batch
    "evaluated": [
        "--config=diffusion_dpo.yaml",
        f"{TOYS}Pairs11",
        "--trainer.limit_val_batches=1.0",
        "--evaluation.max_prompts=2",
        "--evaluation.num_steps=2",
    ],
}
JOBS = {**{name: [f"--config={name}", *OWN.get(name, [])] for name in SHORT}, **MORE}


class Pairs16(ToyPairs):
    """Thirteen pairs, and three ties."""

    def __init__(self) -> None:
        super().__init__(16)


class Pairs11(ToyPairs):
    """Nine pairs, and two ties."""

    def __init__(self) -> None:
        super().__init__(11)


@pytest.fixture(scope="module")
def runs(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with the runs of one process, and with those of two."""
    folders = {}
    with ExitStack() as running:
        all_of_them = []
        for world_size in (1, 2):
            folder = folders[world_size] = tmp_path_factory.mktemp(f"processes{world_size}")
            own = [
                f"--backbone.path={pipeline}",
                f"--data.batch_size={BATCH * 2 // world_size}",
                f"--trainer.devices={world_size}",
                *(["--trainer.strategy=ddp"] if world_size > 1 else []),
            ]
            commands = [["fit", *options, *own, f"--run=runs/{name}"] for name, options in _ordered()]
            all_of_them.append(running.enter_context(Together(folder, commands, world_size)))
        for together in all_of_them:
            together.wait()
    return folders


def _ordered() -> Iterator[tuple[str, list[str]]]:
    for name, options in JOBS.items():
        # what a command says last counts: a job's own options stand behind those of all
        settings = [option for option in options if not option.startswith("--config")]
        config = next(option for option in options if option.startswith("--config"))
        yield name, [config, *OPTIONS, *settings]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = read(run / "checkpoints/last.ckpt")
    return state["state_dict"]  # type: ignore[no-any-return]


def scalars(run: Path) -> dict[tuple[str, int], float]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "pairs/s"]
    return {(tag, event.step): event.value for tag in tags for event in events.Scalars(tag)}


def pairs(run: Path, world_size: int) -> list[list[tuple[int, int]]]:
    """Which pairs were trained on at each step, and at which visit, over all processes."""
    seen = [json.loads((run / f"pairs-{rank}.json").read_text()) for rank in range(world_size)]
    return [sorted(tuple(pair) for part in parts for pair in part) for parts in zip(*seen, strict=True)]


def test_all_methods_are_here() -> None:
    named = [yaml.safe_load(packaged_configs()[name].read_text())["objective"]["name"] for name in SHORT]
    assert len({*named}) >= 9


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one(name: str, runs: dict[int, Path]) -> None:
    """The same pairs at every step, and weights to 1e-6.

    They differ by the order in which float32 sums the gradients of a batch: by 1e-7 after two steps that
    move them by up to 1e-2.
    """
    one, two = (runs[world_size] / "runs" / name for world_size in (1, 2))
    assert pairs(one, 1) == pairs(two, 2)
    assert {len(step) for step in pairs(one, 1)} == {2 * BATCH}
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    assert ours
    for key, weight in ours.items():
        assert_close(weight, theirs[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_log_and_validate_as_one(name: str, runs: dict[int, Path]) -> None:
    """Losses, statistics over the batch and validation figures are of all processes' pairs.

    Implicit rewards are thousands of times a difference of errors near 1, each rounded to 1e-7, and gradients
    are as many times as large; annotators' logits are those again, divided by their norm; and a pair whose
    margin is nothing but that may fall on either side. SEE-DPO logs a ratio of each process's batch.
    """
    ours, theirs = (scalars(runs[world_size] / "runs" / name) for world_size in (1, 2))
    assert ours.keys() == theirs.keys()
    assert {("loss", step) for step in range(STEPS)} <= ours.keys()
    assert any(tag.startswith("val/") for tag, _ in ours)
    for key, value in ours.items():
        noise = next((noise for part, noise in NOISE.items() if part in key[0]), 5e-4)
        share = 1e-4 if key[0] == "guards/grad_norm" else 2e-5
        assert theirs[key] == pytest.approx(value, rel=share, abs=noise), key


def test_two_processes_evaluate_as_one(runs: dict[int, Path]) -> None:
    ours, theirs = (
        json.loads((runs[world_size] / "runs/evaluated/summary.json").read_text()) for world_size in (1, 2)
    )
    assert ours["prompts"] == theirs["prompts"]
    assert len(ours["prompts"]) == 2
    assert ours["scores"].keys() == theirs["scores"].keys() >= {"MajorityTaste"}
    for measure, figures in ours["scores"].items():
        for part, figure in figures.items():
            if part != "win_rate":  # of an untrained model's pictures, all alike
                assert theirs["scores"][measure][part] == pytest.approx(figure, abs=1e-3), (measure, part)


def test_gradients_are_sent_once_an_optimizer_step(runs: dict[int, Path]) -> None:
    """Not for the batches that are only accumulated."""
    for rank in range(2):
        times = json.loads((runs[2] / f"runs/accumulated/sent-{rank}.json").read_text())
        assert [bool(sent) for sent in times] == [False, True] * STEPS


def test_rounds_are_generated_once(runs: dict[int, Path]) -> None:
    """Each file of a round by one of the processes, and all of them as by a single process."""
    folders = [runs[world_size] / "runs/spin_diffusion.yaml/rounds" for world_size in (1, 2)]
    files = [sorted(path.relative_to(folder) for path in folder.rglob("part-*")) for folder in folders]
    assert files[0] == files[1]
    assert len(files[0]) == 2 * 3  # two rounds, twelve pictures in files of four
    for log in sorted(runs[2].glob("err-*.txt")):
        assert "generated anew" not in log.read_text()


@pytest.mark.parametrize("count", range(2, 30))
@pytest.mark.parametrize("world_size", [1, 2])
def test_processes_have_equally_many_validation_batches(count: int, world_size: int) -> None:
    """None is lost, none is there twice, and batches of one number are a single process's."""
    ranks = [shared_out(count, BATCH, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(place for batches in ranks for batch in batches for place in batch) == [*range(count)]
    whole = shared_out(count, BATCH * world_size, rank=0, world_size=1)
    for batches in [*zip(*ranks, strict=True)][:-1]:
        assert sorted(place for batch in batches for place in batch) in [list(batch) for batch in whole]
