"""Two commands that make one cache at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import environment

CONFIG = """
backbone: {class_path: alignkit.testing.ToyBackbone}
objective: DiffusionDPO
sampler: SharedNoise
data:
  train: {class_path: alignkit.testing.ToyPairs, init_args: {count: 200}}
  resolution: 16
trainer: {accelerator: cpu, devices: 1, max_steps: 1, enable_progress_bar: false}
"""
# both have imported everything, and wait for each other
BUILDER = """
import os, sys, time
from pathlib import Path
from alignkit.cli import main
import alignkit.data.cache.making, alignkit.training
Path(sys.argv[1]).touch()
while not (Path("first").exists() and Path("second").exists()):
    time.sleep(0.001)
options = ["--file-rows", "2", "--batch-size", "2"]
sys.exit(main(["cache", "--config", "toy.yaml", "--out", sys.argv[2], *options]))
"""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
def test_two_builders_at_once_leave_what_one_does(tmp_path: Path) -> None:
    """The other gives up in words; no file is half of one and half of the other."""
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def started(name: str, out: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BUILDER, name, out],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    both = [started("first", "cache"), started("second", "cache")]
    said = [builder.communicate(timeout=120)[1] for builder in both]
    codes = [builder.returncode for builder in both]
    assert sorted(codes) == [0, 2], said
    assert "Traceback" not in "".join(said)
    assert "--out cache: another process is at work in it; wait for it" in said[codes.index(2)]
    alone = started("first", "alone")
    alone.communicate(timeout=120)
    assert alone.returncode == 0
    assert files(tmp_path / "cache") == files(tmp_path / "alone")
