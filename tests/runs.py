"""What tests of whole runs share."""

import os
from pathlib import Path

import pytest

from alignkit.cli import main

ROOT = Path(__file__).parents[1]

# all but the trainer of a run on toys, which takes milliseconds a step
TOY = """
seed_everything: 3
objective: {name: DiffusionDPO, beta: 20.0}
sampler: SharedNoise
backbone: {class_path: alignkit.testing.ToyBackbone}
optimizer: {name: AdamW, lr: 1.0e-3}
data:
  train: {class_path: alignkit.testing.ToyPairs}
  validation: {class_path: alignkit.testing.ToyPairs, init_args: {count: 10}}
  batch_size: 8
  resolution: 16
evaluation: {max_prompts: 0}
samples: {num_prompts: 0}
"""


def environment(**others: str) -> dict[str, str]:
    """For processes of their own, with one thread, which import tests and plugins from anywhere."""
    inherited = {name: value for name, value in os.environ.items() if name != "ALIGNKIT_RUN"}
    paths = [str(ROOT), str(ROOT / "plugins"), *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | others


def written(folder: Path, text: str) -> str:
    """A config as a file."""
    path = folder / "tiny.yaml"
    path.write_text(text)
    return str(path)


def straight_run(folder: Path, text: str) -> Path:
    """The folder of a run that nothing happens to, where no fixture is of a single test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_RUN", str(folder / "run"))
        assert main(["fit", "--config", written(folder, text)]) == 0
    return folder / "run"
