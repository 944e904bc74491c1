"""Runs the embedded default's configs with several seeds and writes one table.

    python benchmarks/main_job.py --out benchmarks/results

The claim: held-out prompts gain at least 0.4 standard deviations of the real pictures' majority utility,
with an interval clear of 0; fidelity stays at 95 % of the base's or more; held-out implicit accuracy reaches
0.68; training ends within five minutes on two cores, below 2 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import header, write

COLUMNS = (
    "| config | seed | steps | utility base | utility aligned | gain | fidelity, share of base | "
    "recognition base | recognition aligned | diversity base | diversity aligned | accuracy | "
    "training, s | peak, GB |"
)


def run(config: str, seed: int, folder: Path, extra: list[str]) -> dict[str, Any]:
    """Runs `alignkit fit` and reads what it left."""
    out = folder / f"{Path(config).stem}-{seed}"
    command = [
        sys.executable,
        "-m",
        "alignkit.cli",
        "fit",
        "--config",
        config,
        "--seed_everything",
        str(seed),
    ]
    command += ["--run", str(out), "--samples.num_prompts", "0", *extra]
    environment = {name: value for name, value in os.environ.items() if name != "ALIGNKIT_RUN"}
    subprocess.run(command, check=True, env=environment)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def row(config: str, seed: int, summary: dict[str, Any]) -> str:
    """One line of the table."""
    scores = summary["scores"]
    utility, fidelity = scores["MajorityTaste"], scores["EmojiFidelity"]
    recognition, diversity = scores["EmojiRecognition"], scores["EmojiDiversity"]
    cells = [
        f"`{config}`",
        seed,
        summary["steps"],
        cell(utility["base"]),
        cell(utility["aligned"]),
        cell(utility["difference"]),
        f"{fidelity['ratio']:.1%}",
        cell(recognition["base"]),
        cell(recognition["aligned"]),
        cell(diversity["base"]),
        cell(diversity["aligned"]),
        f"{summary['held_out']['rewards/accuracies']:.3f}",
        f"{summary['train_seconds']:.0f}",
        f"{summary['peak_memory_gb']:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def cell(interval: dict[str, float]) -> str:
    """A mean with its 95 % interval."""
    return f"{interval['mean']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"


def main() -> None:
    """Parses the command line, runs, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=["dmpo.yaml", "diffusion_dpo.yaml"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--runs", type=Path, help="folder for the runs; a temporary one if not given")
    options, extra = parser.parse_known_args()
    lines = [
        *header(
            "The main job",
            "Mean [95 % interval over held-out prompts, bootstrap]; utility in standard deviations of the "
            "real pictures'.",
        ),
        COLUMNS,
        "|" + "---|" * (COLUMNS.count("|") - 1),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for config in options.configs:
            for seed in options.seeds:
                lines.append(row(config, seed, run(config, seed, options.runs or Path(scratch), extra)))
                print(lines[-1], flush=True)
    names = "_".join(Path(config).stem for config in options.configs)
    write(lines, options.out, f"main_job_{names}")


if __name__ == "__main__":
    main()
