"""Whole runs through the command line, on a tiny pipeline."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.testing import assert_close

from alignkit.checkpoints import read
from alignkit_emoji.pictures import FOLDER

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone:
  name: StableDiffusion
  path: {pipeline}
  caption_dropout: 0.2
optimizer: {{name: AdamW, lr: 1.0e-4}}
model: {{warmup_steps: 3}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 20}}}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 2, images_per_prompt: 2, num_steps: 2, guidance: 2.0}}
samples: {{every: 5, num_prompts: 2, num_steps: 2}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 10
  log_every_n_steps: 1
  enable_progress_bar: false
"""


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(pipeline=pipeline))
    return str(path)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same_weights(first: Path, second: Path, tolerance: float) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, weight in ours.items():
        assert_close(weight, theirs[name], rtol=0, atol=tolerance)


def test_what_a_run_leaves(alignkit: Run, config: str, tmp_path: Path, pipeline: Path) -> None:
    code, _, err = alignkit("fit", "--config", config)
    assert code == 0, err
    run = tmp_path / "runs" / "tiny"
    assert "class_path: alignkit_diffusion_dpo.objective.DiffusionDPO" in (run / "config.yaml").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 10
    assert 0 <= summary["held_out"]["rewards/accuracies"] <= 1
    assert summary["guards"]["skipped_steps"] == 0
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    wanted = {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "winner_mse_change",
        "loss",
    }
    assert wanted <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 10
    assert [image.step for image in events.Images("samples")] == [5, 10]
    with Image.open(run / "before_after.png") as sheet:
        assert sheet.width > 192
    trained = UNet2DConditionModel.from_pretrained(run, subfolder="unet")
    base = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    assert not torch.equal(trained.conv_in.weight, base.conv_in.weight)
    checkpoint = read(run / "checkpoints" / "last.ckpt")
    assert all(name.startswith("policy.") for name in checkpoint["state_dict"])
    assert len(checkpoint["reference"]) == 64


def test_a_second_run_does_not_write_over_the_first(alignkit: Run, config: str, tmp_path: Path) -> None:
    for _ in range(2):
        code, _, err = alignkit(
            "fit", "--config", config, "--trainer.max_steps", "1", "--evaluation.max_prompts", "0"
        )
        assert code == 0, err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tiny", "tiny-2"}


def test_the_saved_config_reproduces_the_run(alignkit: Run, config: str, tmp_path: Path) -> None:
    short = ("--evaluation.max_prompts", "0", "--samples.num_prompts", "0")
    for given, run in ((config, "first"), ("first/config.yaml", "second")):
        code, _, err = alignkit("fit", "--config", given, "--run", run, *short)
        assert code == 0, err
    assert_same_weights(tmp_path / "first", tmp_path / "second", 0)


def test_batches_split_over_accumulation_give_the_same_weights(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    split = ("--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2")
    for run, options in (("whole", ()), ("split", split)):
        code, _, err = alignkit(
            "fit", "--config", config, "--run", run, "--evaluation.max_prompts", "0", *options
        )
        assert code == 0, err
    assert_same_weights(tmp_path / "whole", tmp_path / "split", 1e-6)


def test_resumed_run_is_bit_equal(alignkit: Run, config: str, tmp_path: Path) -> None:
    """Ten steps straight against four, saved in the middle of an epoch of six batches, and six more."""
    short = ("--evaluation.max_prompts", "0", "--samples.num_prompts", "0")
    ema = ("--trainer.callbacks=alignkit.callbacks.EMA", "--trainer.callbacks.decay=0.9")
    code, _, err = alignkit("fit", "--config", config, "--run", "straight", *short, *ema)
    assert code == 0, err
    stop = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "4")
    code, _, err = alignkit("fit", "--config", config, "--run", "resumed", *short, *ema, *stop)
    assert code == 0, err
    last = "resumed/checkpoints/last.ckpt"
    code, _, err = alignkit("fit", "--config", config, "--run", "resumed", *short, *ema, "--ckpt_path", last)
    assert code == 0, err
    assert_same_weights(tmp_path / "straight", tmp_path / "resumed", 0)


def test_lora_run_leaves_a_merged_unet_and_the_adapters(alignkit: Run, config: str, tmp_path: Path) -> None:
    code, _, err = alignkit("fit", "--config", config, "--run", "lora", "--backbone.lora.rank", "2")
    assert code == 0, err
    assert any("to_q" in name for name in load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors"))
    assert not any("lora" in name for name in weights(tmp_path / "lora"))
    checkpoint = read(tmp_path / "lora" / "checkpoints" / "last.ckpt")
    assert all("lora_" in name for name in checkpoint["state_dict"])


def test_validate_scores_a_checkpoint(alignkit: Run, config: str, tmp_path: Path) -> None:
    code, _, err = alignkit("fit", "--config", config, "--run", "run", "--evaluation.max_prompts", "0")
    assert code == 0, err
    code, _, err = alignkit("validate", "--config", config, "--ckpt_path", "run/checkpoints/last.ckpt")
    assert code == 0, err
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    checked = json.loads((tmp_path / "runs" / "tiny-validate" / "summary.json").read_text())
    assert checked["held_out"] == trained["held_out"]


def test_generate_draws_base_beside_aligned(alignkit: Run, config: str, tmp_path: Path) -> None:
    """Every picture has a file, also where prompts are long, or differ in what no name holds."""
    long = "x" * 300
    code, _, err = alignkit("fit", "--config", config, "--run", "run", "--evaluation.max_prompts", "0")
    assert code == 0, err
    code, out, err = alignkit(
        "generate", "--run", "run", "--prompt", "a red apple", "green pear", "a red/apple", long, "--num", "2"
    )
    assert code == 0, err
    drawn = {path.name for path in (tmp_path / "run" / "generated").iterdir()}
    assert drawn == {"sheet.png"} | {
        f"{prompt}-{i}-{label}.png"
        for prompt in ("a-red-apple", "green-pear", "a-red-apple-again1", long[:120])
        for i in range(2)
        for label in ("base", "aligned")
    }
    assert "run/generated" in out
    first, second = (
        Image.open(tmp_path / "run" / "generated" / f"a-red-apple-{i}-base.png").tobytes() for i in range(2)
    )
    assert first != second


def test_a_third_partys_objective_is_selected_by_name_and_trains(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    """``make test`` installs tests/third_party/acme_align, a distribution of its own."""
    options = ("--objective", "AcmeHinge", "--trainer.max_steps", "3", "--evaluation.max_prompts", "0")
    code, _, err = alignkit("fit", "--config", config, "--run", "acme", *options)
    assert code == 0, err
    summary = json.loads((tmp_path / "acme" / "summary.json").read_text())
    assert (summary["objective"], summary["steps"]) == ("AcmeHinge", 3)
    assert "acme_align.objective.AcmeHinge" in (tmp_path / "acme" / "config.yaml").read_text()


@pytest.mark.parametrize("adapters", [(), ("--backbone.lora.rank", "2")])
def test_first_margin_is_zero_in_mixed_precision(
    alignkit: Run, config: str, caplog: pytest.LogCaptureFixture, adapters: tuple[str, ...]
) -> None:
    """Policy and reference run on the same numeric path; a run whose first margin is not 0 would stop."""
    options = (
        "--trainer.precision",
        "bf16-mixed",
        "--trainer.max_steps",
        "1",
        "--evaluation.max_prompts",
        "0",
    )
    code, _, err = alignkit("fit", "--config", config, "--run", "mixed", *options, *adapters)
    assert code == 0, err
    assert "first batch: margin 0 (exactly 0), loss of DiffusionDPO 0.693147" in caplog.text


@pytest.mark.parametrize("config_name", ["dmpo/sd15_pickapic.yaml", "diffusion_dpo/sd15_pickapic.yaml"])
def test_a_users_config_runs_on_their_pipeline_and_parquet_files(
    alignkit: Run, config_name: str, pipeline: Path, tmp_path: Path
) -> None:
    """The SD 1.5 configs with a small pipeline, one process and Pick-a-Pic's schema; then what it left."""
    pairs = str(FOLDER / "data" / "pairs.parquet")
    small = ("--backbone.path", str(pipeline), "--data.train.path", pairs, "--data.validation.path", pairs)
    small += ("--trainer.devices", "1", "--trainer.accelerator", "cpu", "--data.resolution", "16")
    small += ("--trainer.accumulate_grad_batches", "2", "--data.num_workers", "0", "--trainer.max_steps", "1")
    quick = (
        "--trainer.limit_val_batches",
        "1",
        "--evaluation.max_prompts",
        "0",
        "--samples.num_prompts",
        "0",
    )
    code, _, err = alignkit(
        "fit", "--config", config_name, *small, *quick, "--trainer.enable_progress_bar", "false"
    )
    assert code == 0, err
    code, _, err = alignkit("fit", "--config", "runs/sd15_pickapic/config.yaml", *quick)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sd15_pickapic", "sd15_pickapic-2"}
