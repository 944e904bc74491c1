"""Runs every method's config on the embedded default with several seeds and writes one table.

    python benchmarks/methods.py --runs runs/methods --out benchmarks/results
    python benchmarks/methods.py --condense benchmarks/results/methods_cpu_202611.md     # the README's table

The claim, of every row: held-out utility rises with an interval clear of 0, fidelity stays at 95 % of the
base's or more, and the run ends within six minutes on two cores. PPD has a row for each of two opposed users
that training has not seen, by that user's own utility; the wrong user's tokens must lower it.

Each run has one thread and one core of its own. Runs that are in the folder are not run again, so that what
was stopped goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from report import commit, header, write

CONFIGS = (
    "diffusion_dpo.yaml",
    "dmpo.yaml",
    "inversion_dpo.yaml",
    "adaptive_dpo.yaml",
    "see_dpo.yaml",
    "spin_diffusion.yaml",
    "ppd.yaml",
    "sft.yaml",
    "ipo.yaml",
    "kto.yaml",
    "mapo.yaml",
    "robust_dpo.yaml",
)
UTILITIES = {"majority": "MajorityTaste", "minority": "MinorityTaste"}
FACTS = "benchmark.json"
COLUMNS = (
    "| config | whose utility | seed | steps | utility of the base | gain | told of the other user | "
    "fidelity, share of base | recognition base | aligned | diversity base | aligned | accuracy | "
    "training, s | whole run, s | peak, GB |"
)


def run(config: str, seed: int, folder: Path, core: int, extra: list[str]) -> dict[str, Any]:
    """Runs `alignkit fit` on one core, unless it was, and reads what it left."""
    out = folder / f"{Path(config).stem}-{seed}"
    if not (out / FACTS).exists():
        command = [sys.executable, "-m", "alignkit.cli", "fit", "--config", config]
        command += ["--seed_everything", str(seed), "--run", str(out), "--samples.num_prompts", "0", *extra]
        environment = {name: value for name, value in os.environ.items() if name != "ALIGNKIT_RUN"}
        environment["OMP_NUM_THREADS"] = "1"
        started = time.monotonic()
        with open(folder / f"{out.name}.log", "w") as log:
            done = subprocess.run(
                ["taskset", "-c", str(core), *command], env=environment, stdout=log, stderr=log
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: see {log.name}")
        facts = {"seconds": round(time.monotonic() - started, 1), "commit": commit()}
        (out / FACTS).write_text(json.dumps(facts))
    return json.loads((out / "summary.json").read_text()) | json.loads((out / FACTS).read_text())


def rows(config: str, seed: int, summary: dict[str, Any]) -> Iterator[str]:
    """One line of the table; one per audience where there are several."""
    if "scores" in summary:
        yield row(config, seed, summary, "majority", summary["scores"], "")
    for audience, scores in summary.get("audiences", {}).items():
        group = next(group for group in UTILITIES if group in audience)
        (contrast,) = [c for name, c in summary["contrasts"].items() if name.startswith(f"{audience} - ")]
        lower = {end: -contrast[UTILITIES[group]]["difference"][end] for end in ("mean", "low", "high")}
        wrong = f"{lower['mean']:+.2f} [{lower['high']:+.2f}, {lower['low']:+.2f}]"
        yield row(config, seed, summary, group, scores, wrong)


def row(
    config: str, seed: int, summary: dict[str, Any], group: str, scores: dict[str, Any], wrong: str
) -> str:
    """One line of the table."""
    utility, fidelity = scores[UTILITIES[group]], scores["EmojiFidelity"]
    recognition, diversity = scores["EmojiRecognition"], scores.get("diversity")
    accuracy = summary["held_out"].get("rewards/accuracies")
    cells = [
        f"`{config}`",
        group,
        seed,
        summary["steps"],
        f"{utility['base']['mean']:+.2f}",
        cell(utility["difference"]),
        wrong,
        f"{fidelity['ratio']:.1%}",
        f"{recognition['base']['mean']:.2f}",
        f"{recognition['aligned']['mean']:.2f}",
        f"{diversity['base']['mean']:.2f}" if diversity else "",
        f"{diversity['aligned']['mean']:.2f}" if diversity else "",
        "" if accuracy is None else f"{accuracy:.2f}",
        f"{summary['train_seconds']:.0f}",
        f"{summary['seconds']:.0f}",
        f"{summary['peak_memory_gb']:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def condensed(text: str) -> str:
    """One line per config and group, over its seeds, of a table that `main` wrote."""
    table: dict[tuple[str, str], list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [item.strip() for item in line.strip("|").split("|")]
            table.setdefault((cells[0], cells[1]), []).append(cells)
    lines = [
        "| config | whose utility | gain, by seed | told of the other user | fidelity, share of base, lowest "
        "| diversity of base, aligned | steps | whole run, longest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (config, group), seeds in table.items():
        gains, wrong = ([cells[column].split(" [")[0] for cells in seeds] for column in (5, 6))
        spread = [[float(cells[column]) for cells in seeds if cells[column]] for column in (10, 11)]
        diversity = ", ".join(f"{sum(values) / len(values):.2f}" for values in spread if values)
        lowest = min(float(cells[7].rstrip("%")) for cells in seeds)
        longest = max(float(cells[14]) for cells in seeds)
        lines.append(
            f"| {config} | {group} | {', '.join(gains)} | {', '.join(filter(None, wrong))} | {lowest:.1f} % "
            f"| {diversity} | {seeds[0][3]} | {longest / 60:.1f} min |"
        )
    return "\n".join(lines)


def cell(interval: dict[str, float]) -> str:
    """A mean with its 95 % interval."""
    return f"{interval['mean']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"


def main() -> None:
    """Parses the command line, runs, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--runs", type=Path, help="folder for the runs; kept")
    parser.add_argument("--condense", type=Path, help="print the README's table of a written one, and stop")
    options, extra = parser.parse_known_args()
    if options.condense:
        print(condensed(options.condense.read_text(encoding="utf-8")))
        return
    if not (options.out and options.runs):
        parser.error("--out and --runs are needed")
    options.runs.mkdir(parents=True, exist_ok=True)
    commits: set[str] = set()
    cores: Queue[int] = Queue()
    for core in options.cores:
        cores.put(core)

    def work(config: str, seed: int) -> list[str]:
        core = cores.get()
        try:
            summary = run(config, seed, options.runs, core, extra)
        finally:
            cores.put(core)
        commits.add(summary["commit"])
        lines = list(rows(config, seed, summary))
        print("\n".join(lines), flush=True)
        return lines

    with ThreadPoolExecutor(len(options.cores)) as pool:
        # seeds outermost: what is stopped early has every method
        waiting = {
            (config, seed): pool.submit(work, config, seed)
            for seed in options.seeds
            for config in options.configs
        }
        done = [line for config in options.configs for seed in options.seeds
                for line in waiting[config, seed].result()]  # fmt: skip
    title = header(
        "Every method on the embedded default",
        "Mean [95 % interval over held-out prompts, bootstrap]; utility in standard deviations of the real "
        "pictures'; one thread and one core per run, as many at a time as there are cores.",
        f"The runs were made at {', '.join(sorted(commits))}.",
    )
    write([*title, COLUMNS, "|" + "---|" * (COLUMNS.count("|") - 1), *done], options.out, "methods")


if __name__ == "__main__":
    main()
