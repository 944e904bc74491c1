"""Every packaged config of the embedded default starts, steps and leaves what a run leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alignkit.configfiles import packaged_configs

Run = Callable[..., tuple[int, str, str]]

SHORT = [name for name in packaged_configs() if "/" not in name or name.startswith("mixtures/")]
FEWER = "--trainer.limit_val_batches 1 --evaluation.max_prompts 0 --samples.num_prompts 0 --data.batch_size 4"


def test_there_are_mixtures() -> None:
    assert len([name for name in SHORT if name.startswith("mixtures/")]) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_config_trains(name: str, alignkit: Run) -> None:
    config = yaml.safe_load(packaged_configs()[name].read_text(encoding="utf-8"))
    # as many steps as there are rounds of self-play, each of few denoising steps
    steps = str(config["sampler"].get("rounds", 2) if isinstance(config["sampler"], dict) else 2)
    fewer = [*FEWER.split(), "--trainer.max_steps", steps, "--trainer.val_check_interval", "1"]
    if steps != "2" or "rounds" in str(config["sampler"]):
        fewer += ["--sampler.num_steps", "1"]
    code, _, err = alignkit("fit", "--config", name, *fewer, "--run", "run")
    assert code == 0, err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] == int(steps)
    assert summary["data"]["pairs"] > 0
    assert list(Path("run").glob("**/*.safetensors"))
