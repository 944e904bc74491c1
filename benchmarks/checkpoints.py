"""Seconds and memory to save and load a checkpoint of a gigabyte, against Lightning's own and torch.save.

    python benchmarks/checkpoints.py --out benchmarks/results

The checkpoint is that of AdamW: weights and two moments in float32, in tensors of a U-Net's sizes. Ours is on
the disk and read back from there when it is said to be saved; Lightning's is neither. Each figure is of its
own process; memory is what it holds at the peak above what it held before, mapped pages of files left out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import header, write

# prints the seconds, and the megabytes at the peak, of one way to save or load
ONE = """
import os, sys, threading, time
from pathlib import Path
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from alignkit.checkpoints import CheckpointFiles

what, way, path, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
io = {"alignkit": CheckpointFiles, "Lightning": TorchCheckpointIO}.get(way)
shapes = [(320, 320, 3, 3), (1280, 1280), (1280,), (640, 2560), (1280, 640, 3, 3)]
size = 12 * sum(torch.Size(shape).numel() for shape in shapes)
weights = lambda: {f"{n}.{m}": torch.randn(s) for n in range(count // size + 1) for m, s in enumerate(shapes)}

def torch_save(state):
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())

if what == "save":
    moments = [weights(), weights()]
    state = {"global_step": 5, "state_dict": weights(), "optimizer_states": [
        {"state": {n: {"step": torch.tensor(5.0), "exp_avg": a, "exp_avg_sq": b} for n, (a, b) in
        enumerate(zip(*(part.values() for part in moments)))}, "param_groups": [{"lr": 1e-4}]}]}
    act = lambda: io().save_checkpoint(state, path) if io else torch_save(state)
else:
    act = lambda: io().load_checkpoint(path, weights_only=True) if io else torch.load(path, weights_only=True)

def held():
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], held())

before, peak, done = held(), [0.0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
kept = act()
took = time.perf_counter() - began
done.set()
watcher.join()
print("TOOK", took, peak[0] - before)
"""
WAYS = {
    "alignkit": "alignkit: synced and verified",
    "torch": "torch.save and fsync",
    "Lightning": "Lightning's TorchCheckpointIO",
}


def measured(what: str, way: str, path: Path, size: int) -> tuple[float, float]:
    """Seconds and megabytes."""
    command = [sys.executable, "-c", ONE, what, way, str(path), str(size)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, seconds, megabytes = next(line for line in told.splitlines() if line.startswith("TOOK")).split()
    return float(seconds), float(megabytes)


def main() -> None:
    """Saves and loads in each way, three times, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--size", type=int, default=10**9, help="bytes of the checkpoint")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="disk that is used")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = [
        *header("Checkpoints", f"{options.size / 1e9:g} GB; least and most of three; MB at the peak."),
        "| way | save, s | save, MB | load, s | load, MB |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "step=5.ckpt")
        for way, told in WAYS.items():
            cells = []
            for what in ("save", "load"):
                figures = [measured(what, way, path, options.size) for _ in range(3)]
                seconds, megabytes = zip(*figures, strict=True)
                cells.append(f"{min(seconds):.1f} to {max(seconds):.1f} | {max(megabytes):.0f}")
            lines.append(f"| {told} | {' | '.join(cells)} |")
            print(lines[-1])
    write(lines, options.out, "checkpoints")


if __name__ == "__main__":
    main()
