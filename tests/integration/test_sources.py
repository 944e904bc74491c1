"""Whole runs on pairs in files: shapes of their own, winners alone, and what is refused before anything."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.test_runs import assert_same_weights
from tests.plugins.sources.formats import WRITERS, ten_pairs
from tests.runs import environment

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
seed_everything: 3
objective: {objective}
sampler: SharedNoise
backbone: {{name: {backbone}, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 1.0e-4}}
data:
  train: {source}
  batch_size: {batch_size}
  resolution: 16
  max_unreadable: 0.1
{more}
evaluation: {{max_prompts: 0}}
trainer:
  accelerator: cpu
  devices: {devices}
  max_steps: {steps}
  log_every_n_steps: 1
  enable_progress_bar: false
"""
SHAPES = "  bucket_step: 8\n  flip: 0.5\n  crop_shift: 1.0"


def written(folder: Path, **settings: object) -> str:
    """A config of those settings."""
    given = {"objective": "DiffusionDPO", "backbone": "StableDiffusion", "batch_size": 2, "more": ""}
    config = folder / f"{settings.get('name', 'pairs')}.yaml"
    config.write_text(CONFIG.format(**{**given, "steps": 6, "devices": 1, **settings}))
    return str(config)


@pytest.fixture
def shaped(tmp_path: Path) -> str:
    """Pairs of three shapes, one of which cannot be read, as a config says it."""
    shapes, lines = [(16, 16), (36, 9), (12, 28)], []
    home = tmp_path / "pairs"
    home.mkdir()
    for index in range(30):
        width, height = shapes[index % 3]
        for side in (0, 1):
            generator = np.random.default_rng(2 * index + side)
            pixels_HWC = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels_HWC).save(buffer, "PNG")
            (home / f"{index}_{side}.png").write_bytes(buffer.getvalue() if index != 4 else b"")
        names = {"image_0": f"{index}_0.png", "image_1": f"{index}_1.png"}
        lines.append(json.dumps({"prompt": f"pear {'abc'[index % 3]}", **names, "label_0": index % 2}))
    (home / "pairs.jsonl").write_text("\n".join(lines))
    return f"{{name: JSONLines, path: {home / 'pairs.jsonl'}}}"


@pytest.mark.filterwarnings("ignore:pair 4. its picture cannot be read")
def test_a_run_on_shapes_goes_on_where_it_stopped(
    alignkit: Run, shaped: str, pipeline: Path, tmp_path: Path
) -> None:
    config = written(tmp_path, source=shaped, pipeline=pipeline, more=SHAPES)
    code, _, err = alignkit("fit", "--config", config)
    assert code == 0, err
    assert "pairs by height x width: 8 x 32: 9, 16 x 16: 10, 32 x 8: 10; every epoch leaves out 1" in err
    stop = ("--run", "runs/stopped", "--trainer.max_steps", "3")
    assert alignkit("fit", "--config", config, *stop)[0] == 0
    ckpt = ("--ckpt_path", "runs/stopped/checkpoints/last.ckpt")
    code, _, err = alignkit("fit", "--config", config, "--run", "runs/stopped", *ckpt)
    assert code == 0, err
    assert_same_weights(tmp_path / "runs" / "pairs", tmp_path / "runs" / "stopped", 0)


@pytest.mark.slow
def test_two_processes_on_shapes_give_the_same_weights_as_one(
    shaped: str, pipeline: Path, tmp_path: Path
) -> None:
    """Six steps of two pairs: one process with both, two DDP processes with one each, and two that read.

    Adam's first steps are as long as the learning rate, 1e-4, however small a gradient is: rounding shows,
    and other pairs would show ten times more.
    """
    config = written(tmp_path, source=shaped, pipeline=pipeline, more=SHAPES)
    ddp = ("--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp")
    for run, options in (("one", ()), ("two", ddp), ("workers", ("--data.num_workers=2",))):
        command = [
            sys.executable,
            "-m",
            "alignkit.cli",
            "--trust",
            "tests",
            "fit",
            f"--config={config}",
            f"--run={run}",
            *options,
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)
    assert_same_weights(tmp_path / "one", tmp_path / "workers", 0)


@pytest.mark.filterwarnings("ignore:pair 4. its picture cannot be read")
def test_a_run_of_sdxl_on_shapes(alignkit: Run, shaped: str, xl_pipeline: Path, tmp_path: Path) -> None:
    """Its time ids come from frames, which differ from pair to pair."""
    settings = {"backbone": "StableDiffusionXL", "pipeline": xl_pipeline, "more": SHAPES, "steps": 3}
    code, _, err = alignkit("fit", "--config", written(tmp_path, source=shaped, **settings))
    assert code == 0, err
    assert "first batch: margin 0 (exactly 0)" in err


def test_winners_alone_are_fine_tuned_on(alignkit: Run, pipeline: Path, tmp_path: Path) -> None:
    home = tmp_path / "captioned"
    home.mkdir()
    WRITERS["Captioned"](home, ten_pairs())
    source = f"{{name: Captioned, path: {home}}}"
    code, _, err = alignkit(
        "fit", "--config", written(tmp_path, objective="SFT", source=source, pipeline=pipeline)
    )
    assert code == 0, err
    assert "10 training pairs, 0 ties dropped" in err


@pytest.mark.parametrize("objective", ["DiffusionDPO", "UnpairedKTO"])
def test_winners_alone_are_refused_where_pairs_are_read(
    objective: str, alignkit: Run, pipeline: Path, tmp_path: Path
) -> None:
    home = tmp_path / "captioned"
    home.mkdir()
    WRITERS["Captioned"](home, ten_pairs())
    source = f"{{name: Captioned, path: {home}}}"
    config = written(tmp_path, objective=objective, source=source, pipeline=pipeline)
    code, _, err = alignkit("fit", "--config", config)
    assert code == 2
    assert "train Captioned has winners only, but this objective or sampler reads both candidates" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
