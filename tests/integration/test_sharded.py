"""Policy and reference sharded over two processes: what is trained, saved and drawn is what one has."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.testing import assert_close

from alignkit.checkpoints import is_there, read, saved
from alignkit.cli import main
from tests.integration.processes import Together

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]

# 4 steps of 8 pairs, saved and validated after 2; of the 13 held-out ones, the first process has 7 in two
# batches and the other one 6. AdamW's eps keeps it from blowing up how sums of two halves are rounded
CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 5.0e-4, eps: 1.0e-3}}
model: {{warmup_steps: 3}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 13}}}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 0}}
samples: {{num_prompts: 0}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 2
  gradient_clip_val: 0.5
  enable_progress_bar: false
  callbacks:
  - {{class_path: alignkit.callbacks.EMA, init_args: {{decay: 0.9}}}}
"""
TWO = ("--trainer.devices", "2", "--data.batch_size", "4")
SHARDED = ("--trainer.strategy", "fsdp")
NETWORK = Path("unet", "diffusion_pytorch_model.safetensors")
LORA = ("--backbone.lora.rank", "2")
HALF = ("--trainer.max_steps", "2")
ROUNDS = (
    *("--sampler", "SelfPlay", "--sampler.rounds", "2", "--sampler.num_steps", "1"),
    *("--sampler.batch_size", "2", "--sampler.chunk_size", "2"),
)
DRAWN = (
    *("--samples.num_prompts", "2", "--samples.num_steps", "1", "--samples.every", "2"),
    *("--evaluation.max_prompts", "2", "--evaluation.num_steps", "1"),
)
MIXED = (
    *("--trainer.precision", "bf16-mixed", "--backbone.frozen_dtype", "bfloat16"),
    *("--trainer.max_steps", "1", "--trainer.val_check_interval", "1"),
)


KINDS = {
    "full, drawn now and then": DRAWN,
    "adapters, accumulated": (
        *LORA,
        *("--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "4"),
    ),
    "full, rounds": ROUNDS,
    "full, snapshots": ("--weighting", "MinorityAware"),
    "full, inverted": ("--sampler", "DDIMInversion", "--sampler.num_steps", "2"),
}
# one step: from then on, what bfloat16 rounds decides
MIXED_KINDS = {
    "adapters beside bfloat16, recomputed": (*LORA, *MIXED, "--backbone.gradient_checkpointing", "true"),
    "full beside bfloat16": MIXED,
}


def command(config: Path, *options: str) -> list[str]:
    return ["fit", "--config", str(config), *options]


def of_two(config: Path, run: Path, *options: str) -> list[str]:
    return command(config, *options, *SHARDED, *TWO, "--run", str(run))


def run_alone(run: Path, arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_RUN", str(run))
        assert main(arguments) == 0


@pytest.fixture(scope="module")
def runs(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run by one process and by two; and those that two processes go on with, and one."""
    folder = tmp_path_factory.mktemp("sharded")
    config = folder / "tiny.yaml"
    config.write_text(CONFIG.format(pipeline=pipeline))
    together = []
    for name, options in {**KINDS, **MIXED_KINDS}.items():
        run_alone(folder / f"{name}, alone", command(config, *options))
        together.append(of_two(config, folder / name, *options))
    run_alone(folder / "half, alone", command(config, *HALF))
    together.append(of_two(config, folder / "half", *HALF))
    for half in ("half", "half, alone"):
        path = str(folder / half / "checkpoints" / "last.ckpt")
        together.append(of_two(config, folder / f"{half}, then two", "--ckpt_path", path))
    with Together(folder, together, 2) as running:
        running.wait()
    path = str(folder / "half" / "checkpoints" / "last.ckpt")
    run_alone(folder / "half, then one", command(config, "--ckpt_path", path))
    return folder


def weights(run: Path) -> dict[str, Tensor]:
    """All that a run trained, as it saved it for use."""
    found = {path: load_file(path) for path in sorted(run.glob("unet*/*.safetensors"))}
    assert found
    return {f"{path.name} {name}": weight for path, held in found.items() for name, weight in held.items()}


def assert_near(first: Path, second: Path, tolerance: float) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert_close(weight, theirs[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_train_what_one_does(runs: Path, name: str) -> None:
    # scores that are divided by how far they spread, of margins near 0, make much of how sums are rounded
    tolerance = 5e-6 if name == "full, snapshots" else 1e-6
    assert_near(runs / name, runs / f"{name}, alone", tolerance)


@pytest.mark.parametrize("name", MIXED_KINDS)
def test_mixed_precision_rounds_as_with_one_process(runs: Path, pipeline: Path, name: str) -> None:
    """Of half of the weights, the step differs by less than 1 %; from that in float32 it does by 13 %."""
    start, apart = load_file(pipeline / NETWORK), []
    ours, theirs = (load_file(runs / run / NETWORK) for run in (name, f"{name}, alone"))
    for key, weight in start.items():
        step = theirs[key] - weight
        if step.any():
            apart.append(float((ours[key] - theirs[key]).norm() / step.norm()))
    assert len(apart) >= 32
    assert sorted(apart)[len(apart) // 2] < 0.01


def test_all_weights_were_trained(runs: Path, pipeline: Path) -> None:
    """What is compared above is not what they began with."""
    start = load_file(pipeline / NETWORK)
    ours = weights(runs / "full, drawn now and then")
    assert len(ours) == len(start)
    for name, weight in ours.items():
        assert (weight - start[name.split()[1]]).abs().max() > 5e-6, name


@pytest.mark.parametrize("name", ["full, drawn now and then", "full, rounds", "adapters, accumulated"])
def test_all_of_validation_is_counted_once(runs: Path, name: str) -> None:
    ours, theirs = (json.loads((runs / run / "summary.json").read_text()) for run in (name, f"{name}, alone"))
    assert ours["held_out"].keys() == theirs["held_out"].keys() != set()
    for key, value in ours["held_out"].items():
        assert value == pytest.approx(theirs["held_out"][key], abs=2e-5), key


def test_each_process_keeps_a_share_of_policy_average_and_optimizer(runs: Path) -> None:
    folder = runs / "full, drawn now and then" / "checkpoints" / "last.ckpt"
    held = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    whole = read(folder)
    first, second = held
    name = next(name for name in second if name.startswith("state_dict/policy."))
    weight = whole["state_dict"][name.removeprefix("state_dict/")]
    assert first[name][0] + second[name][0] == weight.shape[0]
    kinds = {name.split("/")[0] for name in second}
    assert kinds == {"state_dict", "optimizer_states", "callbacks"}
    sizes = [sum(torch.Size(shape).numel() for shape in part.values()) for part in held]
    assert 0.9 < sizes[0] / sizes[1] < 1.3
    assert not any("text_encoder" in name or "vae" in name for name in first)


def test_checkpoint_of_two_holds_what_that_of_one_does(runs: Path) -> None:
    ours, theirs = (read(runs / run / "checkpoints" / "last.ckpt") for run in ("half", "half, alone"))
    assert ours.keys() == theirs.keys()
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in ours["state_dict"].items():
        assert_close(weight, theirs["state_dict"][name], rtol=0, atol=1e-6)
    (mine,), (other,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert mine["state"].keys() == other["state"].keys()
    for number, kept in mine["state"].items():
        for name, value in kept.items():
            assert_close(value, other["state"][number][name], rtol=1e-3, atol=1e-6)


def test_resumed_by_as_many_it_is_bit_for_bit_the_run_that_went_on(runs: Path) -> None:
    ours, theirs = weights(runs / "half, then two"), weights(runs / "full, drawn now and then")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize("name", ["half, then one", "half, alone, then two"])
def test_resumed_by_another_number_it_is_the_same_run(runs: Path, name: str) -> None:
    assert_near(runs / name, runs / "full, drawn now and then, alone", 1e-6)


def test_old_checkpoints_go_and_nothing_else_stays(runs: Path) -> None:
    folder = runs / "full, drawn now and then" / "checkpoints"
    assert sorted(os.listdir(folder)) == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "last.ckpt"]
    assert all(is_there(path) and path.is_dir() for path in folder.iterdir())


def test_model_of_a_sharded_run_is_read_as_any_other(runs: Path) -> None:
    run = runs / "full, drawn now and then"
    found = saved(run / "checkpoints" / "last.ckpt", "--model")
    assert (found.step, found.averaged) == (4, True)
    final = weights(run)
    for name, weight in found.weights.items():
        assert torch.equal(weight, final[f"diffusion_pytorch_model.safetensors {name}"])


def test_pictures_are_drawn_as_by_one_process(runs: Path) -> None:
    def grids(run: Path) -> list[bytes]:
        events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
        return [image.encoded_image_string for image in events.Images("samples")]

    name = "full, drawn now and then"
    ours, theirs = grids(runs / name), grids(runs / f"{name}, alone")
    assert len(ours) == len(theirs) == 2
    assert (runs / name / "before_after.png").is_file()
    assert ours[0].startswith(b"\x89PNG")


def test_candidates_are_generated_as_by_one_process(runs: Path) -> None:
    """The first round's are of the same weights; which process made them plays no part."""
    ours, theirs = (
        sorted((runs / run / "rounds" / "0").glob("*.safetensors"))
        for run in ("full, rounds", "full, rounds, alone")
    )
    assert [path.name for path in ours] == [path.name for path in theirs] != []
    for mine, other in zip(ours, theirs, strict=True):
        drawn, expected = load_file(mine), load_file(other)
        assert drawn.keys() == expected.keys()
        for name, value in drawn.items():
            assert_close(value, expected[name])
