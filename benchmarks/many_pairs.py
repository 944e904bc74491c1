"""Time to the first step, and memory, of `alignkit fit` on more and more pairs: read, and cached.

    python benchmarks/many_pairs.py --out benchmarks/results

The claims: from 1,000 to 100,000 pairs the time until the first step is done grows at most by a factor of 2,
and the memory that the process holds by at most 5 %, mapped pages of files left out, which the system takes
back when it needs them; the peak has them. Each figure is a whole process, imports included, that trains one
step of a tiny Stable Diffusion on a parquet file of Pick-a-Pic's columns. The file is opened once before,
which converts it.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clocked import Moment, clocked
from PIL import Image
from report import header, write

from alignkit.testing.pipelines import RESOLUTION, tiny_stable_diffusion

COUNTS = (1_000, 10_000, 100_000)
PICTURES, PROMPTS, USERS = 64, 500, 100
CONFIG = """
objective: DiffusionDPO
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}}}
optimizer: {{name: AdamW, lr: 1.0e-4}}
data:
  train: {{name: PickAPic, path: {pairs}}}
  batch_size: 8
  resolution: {resolution}
samples: {{num_prompts: 0}}
trainer: {{accelerator: cpu, max_steps: 1, enable_progress_bar: false}}
"""


def write_pairs(path: Path, count: int) -> None:
    """Pairs of a few small pictures: what grows is their number."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        data = io.BytesIO()
        Image.fromarray(random.integers(256, size=(RESOLUTION, RESOLUTION, 3), dtype=np.uint8)).save(
            data, "PNG"
        )
        pictures.append(data.getvalue())
    rows = range(count)
    table = pa.table(
        {
            "caption": [f"pear {row % PROMPTS}" for row in rows],
            "jpg_0": [pictures[row % PICTURES] for row in rows],
            "jpg_1": [pictures[(row + 1) % PICTURES] for row in rows],
            "label_0": [float(row % 2) for row in rows],
            "user_id": [row % USERS for row in rows],
        }
    )
    pq.write_table(table, path)


def measured(count: int, rounds: int) -> list[tuple[str, Moment]]:
    """The best of several starts, read and cached in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline, pairs = tiny_stable_diffusion(folder / "pipeline"), folder / "pairs.parquet"
        write_pairs(pairs, count)
        text = CONFIG.format(pipeline=pipeline, pairs=pairs, resolution=RESOLUTION)
        (folder / "tiny.yaml").write_text(text)
        command = [sys.executable, "-m", "alignkit.cli", "cache", "--config", "tiny.yaml", "--out", "latents"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        ways = {"read": (), "cached": ("--data.cache", "latents")}
        starts: dict[str, list[Moment]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, options in ways.items():
                ((first,),) = clocked(["fit", "--config", "tiny.yaml", *options], folder)
                starts[way].append(first)
        return [(way, Moment(*map(min, zip(*found, strict=True)))) for way, found in starts.items()]


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind; the least counts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = [
        *header("Up to the first step, by number of pairs", f"The least of {options.rounds} processes each."),
        "| pairs | how | seconds | of the first row | CPU seconds | peak of memory, MB | of the first row "
        "| without mapped files, MB | of the first row |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first: dict[str, Moment] = {}
    for count in COUNTS:
        for way, start in measured(count, options.rounds):
            base = first.setdefault(way, start)
            lines.append(
                f"| {count:,} | {way} | {start.wall:.1f} | {start.wall / base.wall:.2f} | {start.cpu:.1f} "
                f"| {start.peak:.0f} | {start.peak / base.peak:.3f} | {start.own:.0f} "
                f"| {start.own / base.own:.3f} |"
            )
            print(lines[-1], flush=True)
    write(lines, options.out, "many_pairs")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
